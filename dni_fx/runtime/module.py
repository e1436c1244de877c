"""What `transform` returns: a GraphModule with everything new under `net.dni`."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode

from dni_fx.errors import DniFxError, SourceError
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.runtime.dni import Dni
from dni_fx.runtime.flat import Calling
from dni_fx.runtime.retrace import rename, retrace

__all__ = ["DecoupledModule", "adopt", "call_original", "plain", "share_state"]


class DecoupledModule(fx.GraphModule):
    """A GraphModule that survives copying and pickling whole.

    fx.GraphModule keeps only what its graph refers to; this keeps unused parameters, the model's containers,
    non-persistent buffers and node names too.
    """

    dni: Dni

    def dni_settings(self) -> dict[str, Any]:
        """What a saved class needs to be this one again, beside the graph: plain literals by attribute name.

        Raises:
            SourceError: If the graph reads what has no text form.
        """
        calling: Calling | None = self.__dict__.get("dni_calling")
        if calling is None:
            return {}
        original = self.__dict__["dni_original"]
        read = sorted({str(n.target) for n in self.graph.nodes if n.op == "get_attr"})
        constants = [name for name in read if not name.startswith("dni.") and not _has(original, name)]
        for name in constants:
            if not isinstance(getattr(self, name), Tensor):
                raise SourceError(f"the graph holds {name}, which cannot be written as source: train it without saving")
        modes = self.__dict__["dni_modes"]
        return {"dni_calling": calling.to_text(), "dni_modes": modes, "dni_constants": tuple(constants)}

    def dni_recall(self, settings: Mapping[str, Any]) -> None:
        """Take what `dni_settings` gave."""
        if "dni_calling" in settings:
            self.dni_flatten(Calling.from_text(settings["dni_calling"]), settings["dni_modes"])

    def dni_flatten(self, calling: Calling, modes: Mapping[str, bool]) -> None:
        """Say that the graph is flat, and how it is called.

        Args:
            modes: Modules that were captured in eval mode, by name.
        """
        autocast = any(node.target is torch.amp.autocast_mode._enter_autocast for node in self.graph.nodes)
        watched = [(name, module, modes.get(name, True)) for name, module in self.named_modules() if name]
        self.__dict__.update(dni_calling=calling, dni_modes=dict(modes), dni_watched=watched, dni_autocast=autocast)
        self.recompile()

    def recompile(self) -> PythonCode:
        code = super().recompile()
        if "dni_calling" in self.__dict__:
            cls: Any = type(self)
            cls.dni_flat = cls.forward
            cls.forward = _call_flat
        return code

    def train(self, mode: bool = True) -> "DecoupledModule":
        """As the model's own `train`, which may keep some of its modules in eval mode."""
        super().train(mode)
        original = self.__dict__.get("dni_original")
        if original is not None and type(original).train is not nn.Module.train:
            original.train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoupledModule":
        result: DecoupledModule = _base(self)(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = result
        state = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code", "_compiled_call_impl")}
        result.__dict__.update(copy.deepcopy(state, memo))
        result.graph = copy.deepcopy(self.graph)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, import_block) = super().__reduce__()
        body.pop("_compiled_call_impl", None)  # a copy is compiled anew, where that is wanted
        return _unpickle, (
            _base(self),
            type(self).__name__,
            body,
            import_block,
            # In the order of the code, which has all arguments first.
            [n.name for n in sorted(self.graph.nodes, key=lambda node: node.op != "placeholder")],
        )


def _call_flat(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for `forward` where the graph is flat: takes and gives what the original model does.

    The graph holds for train mode alone: in eval mode the original runs.
    """
    context = {"dni_context": kwargs.pop("dni_context")} if "dni_context" in kwargs else {}
    if not self.training:
        return call_original(self, *args, **kwargs)
    for name, module, training in self.__dict__["dni_watched"]:
        if module.training != training:
            mode = "train" if module.training else "eval"
            raise DniFxError(
                f"{name} is in {mode} mode, but was captured in the other, which the front end export fixes: let the "
                'model\'s own train() set it, or use frontend="modules"'
            )
    calling: Calling = self.__dict__["dni_calling"]
    tensors = calling.flatten(self.__dict__["dni_original"].forward, args, kwargs)
    with _autocast_restored() if self.__dict__["dni_autocast"] else contextlib.nullcontext():
        return calling.unflatten(self.dni_flat(*tensors, **context))


@contextlib.contextmanager
def _autocast_restored() -> Iterator[None]:
    """An error inside of an autocast block of a graph, which two nodes enter and leave, must not leave it open."""
    devices = ("cpu", "cuda")
    before = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    try:
        yield
    except BaseException:
        now = torch.autocast_increment_nesting()
        while now >= depth:
            now = torch.autocast_decrement_nesting()
        for device, (enabled, dtype) in zip(devices, before, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        raise


def call_original(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the model that `net` was made from, on what `net` holds."""
    original: nn.Module = net.__dict__["dni_original"]
    share_state(net, original, without="dni")
    original.training = net.training
    result = original(*args, **kwargs)
    net._buffers.update(original._buffers)  # forward may have put others in their place
    return result


def _base(net: DecoupledModule) -> type[DecoupledModule]:
    """The class as it was written; fx makes one of its own for every graph."""
    return next(cls for cls in type(net).__mro__ if cls.__module__.startswith("dni_fx."))


def _unpickle(
    base: type[DecoupledModule], class_name: str, body: dict[str, Any], import_block: str, names: list[str]
) -> DecoupledModule:
    namespace: dict[str, Any] = {}
    exec(import_block + body["_code"], namespace)
    shell = nn.Module()
    shell.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    graph = retrace(shell, namespace["forward"])
    rename(graph, names)
    result = base(nn.Module(), fx.Graph(), class_name)
    result.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    result.graph = graph
    return result


def adopt(
    model: nn.Module, graph: fx.Graph, holder: nn.Module | None = None, base: type[DecoupledModule] = DecoupledModule
) -> DecoupledModule:
    """A module of class `base` that runs `graph` on the very submodules, parameters and buffers of `model`.

    Args:
        holder: Where what the graph reads is found, if `model` has it not: constants that a capture made.
    """
    holder = model if holder is None else holder
    net = base(holder, graph, type(model).__name__)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    constants = {name: attrgetter(name)(holder) for name in read if not _has(model, name)}
    constants |= {k: v for k, v in net._buffers.items() if k not in model._buffers}
    share_state(model, net)
    for name, value in constants.items():
        flat = name.replace(".", "_")
        if isinstance(value, Tensor):
            net.register_buffer(flat, value.detach(), persistent=False)
        else:
            net.add_module(flat, value)
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == name:
                node.target = flat
    net.training = model.training
    net.__dict__["dni_original"] = model
    return net


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


def plain(net: DecoupledModule) -> DecoupledModule:
    """The graph that was captured, on the parameters of `net`, without all that the rewrite added."""
    result: DecoupledModule = _base(net)(nn.Module(), fx.Graph(), type(net).__name__)
    share_state(net, result, without="dni")
    graph = fx.Graph()
    graph.output(graph.graph_copy(net.graph, {})).meta = dict(net.graph.output_node().meta)
    result.graph = graph
    RemoveDni()(result)
    result.graph.lint()
    kept = ("dni_calling", "dni_modes", "dni_watched", "dni_autocast", "dni_original", "dni_outputs", "dni_written")
    result.__dict__.update({key: net.__dict__[key] for key in kept if key in net.__dict__})
    result.__dict__.setdefault("dni_original", None)
    result.recompile()
    result.training = net.training
    return result


def share_state(source: nn.Module, destination: nn.Module, *, without: str = "") -> None:
    """Make `destination` hold the very parameters, buffers and children that `source` has, in their order.

    Args:
        without: A child that is left out.
    """
    for kind in ("_parameters", "_buffers", "_modules"):
        held = getattr(destination, kind)
        wanted = {name: value for name, value in getattr(source, kind).items() if name != without}
        # Most often nothing has changed: then nothing is touched, and threads may run the same model in eval mode.
        if list(held) != list(wanted) or any(held[name] is not wanted[name] for name in wanted):
            held.clear()
            held.update(wanted)
    destination._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
