"""What `transform` returns: a GraphModule with everything new under `net.dni`."""

import copy
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from dni_fx.model import Captured, Inputs, Path, by_path
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.runtime.dni import Interfaces
from dni_fx.runtime.outputs import Result, result_of_graph
from dni_fx.runtime.retrace import rename, retrace

__all__ = ["DecoupledModule", "Stamp", "adopt", "call_original", "has", "plain", "share_state"]

Module = TypeVar("Module", bound="DecoupledModule")

Stamp = Callable[[str], None]  # is called with the name of each node once the node has run


class DecoupledModule(fx.GraphModule):
    """A GraphModule that survives copying and pickling whole.

    fx.GraphModule keeps only what its graph refers to; this keeps unused parameters, the model's containers,
    non-persistent buffers and node names too.

    The names of its methods begin with `dni_`, so that none of them hides a submodule of the model. Its subclasses
    are `FlatModule`, by the front end export, and `HookedModule`, by the front end modules.
    """

    dni: Interfaces
    dni_captured: Captured = Captured()
    dni_runs_graph = True  # False: forward runs the original model, and the graph is a record of its calls
    dni_keeps_key_order = False  # the keys of a dict among the arguments have to come in the example's order

    @property
    def dni_original(self) -> nn.Module:
        """The model that was captured, where the module cannot do without it: it runs, or its signature is read."""
        assert self.dni_captured.original is not None
        return self.dni_captured.original

    def dni_settings(self) -> dict[str, Any]:
        """Plain literals by attribute name: what a saved class needs beside the graph.

        Raises:
            SourceError: If the graph reads a value that has no text form.
        """
        return {}

    def dni_recall(self, settings: Mapping[str, Any]) -> None:
        """Take what `dni_settings` gave."""

    def dni_values_for(self, inputs: Inputs) -> list[Any]:
        """Values for the placeholders, in their order, as fx.Interpreter takes them."""
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        values = list(inputs.args)
        for node in placeholders[len(values) :]:
            default = node.args[0] if node.args else None
            values.append(inputs.kwargs.get(str(node.target), default))
        return values

    def dni_state_places(self, given: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
        """For each tensor of each argument: the name of its placeholder, and its path in the placeholder's value."""
        by_target = {str(node.target): node.name for node in self.graph.nodes if node.op == "placeholder"}
        return {n: [(by_target[n], path) for path in by_path(value)] for n, value in given.items() if n in by_target}

    def dni_result(self, inputs: Inputs) -> Result:
        """What a call of the model on these inputs returns."""
        return result_of_graph(self.graph)

    def dni_uncut(self) -> nn.Module:
        """A module that computes what the captured model does, on the same parameters, without any cut."""
        return plain(self)

    def dni_run_stamped(self, inputs: Inputs, stamp: Stamp) -> Any:
        """Run the captured model, and call `stamp` after each node."""
        return _Stamping(self, stamp).run(*self.dni_values_for(inputs))

    def dni_preferred_ends(self) -> frozenset[str]:
        """Names of the nodes after which automatic cuts go; empty: after any."""
        return frozenset()

    def train(self, mode: bool = True) -> "DecoupledModule":
        """As the model's own `train`, which may keep some of its modules in eval mode."""
        super().train(mode)
        original = self.dni_captured.original
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


class _Stamping(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, stamp: Stamp) -> None:
        super().__init__(module)
        self.stamp = stamp

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.stamp(n.name)
        return value


def call_original(net: DecoupledModule, *args: Any, **kwargs: Any) -> Any:
    """Run the model that `net` was made from, on the parameters and buffers that `net` holds."""
    original = net.dni_original
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
    model: nn.Module, graph: fx.Graph, captured: Captured, base: type[Module], holder: nn.Module | None = None
) -> Module:
    """A module of class `base` that runs `graph` on the very submodules, parameters and buffers of `model`.

    Args:
        captured: Kept as the module's `dni_captured`; of the class that `base` declares.
        holder: The module that has the constants which a capture made; None: `model`.
    """
    holder = model if holder is None else holder
    net = base(holder, graph, type(model).__name__)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    constants = {name: attrgetter(name)(holder) for name in read if not has(model, name)}
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
    net.dni_captured = captured
    net.recompile()
    return net


def has(model: nn.Module, path: str) -> bool:
    """Whether a model has an attribute at this path."""
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
    result.dni_captured = net.dni_captured
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
