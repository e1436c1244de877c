"""`DecoupledModule`, which `transform` returns: a GraphModule with all that the rewrite added under `net.dni`."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _forward_from_src

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.graph import lint, own_loss
from dni_fx.model import REGISTERED, Captured, Inputs, Path, Read, Reads, at_path, by_path, has_path
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.runtime.attributes import LinkedModule, linked, return_state, share_state
from dni_fx.runtime.dni import Dni, StepsSegments
from dni_fx.runtime.generated import OF_GRAPH_MODULE, AnyNames, free_reserved_name
from dni_fx.runtime.outputs import Result, result_of_graph
from dni_fx.runtime.pieces import connect_pieces
from dni_fx.runtime.retrace import rename, retrace
from dni_fx.runtime.signature import set_signature, takes_any_keyword

__all__ = [
    "DecoupledModule",
    "Stamp",
    "call_original",
    "make_module",
    "not_rewritten",
    "plain",
    "rewritten",
]

Module = TypeVar("Module", bound="DecoupledModule")

T = TypeVar("T")

Stamp = Callable[[str], None]  # called after each node has run, with the node's name


class DecoupledModule(LinkedModule):
    """A GraphModule of which copies and pickles are complete.

    A copy of an fx.GraphModule has only the attributes that the graph reads. A copy of this class also has unused
    parameters, the model's containers, non-persistent buffers and the names of the nodes.

    The names of the methods begin with `dni_`, so that no method hides a submodule of the model. The front end export
    makes the subclass `FlatModule`, the front end modules the subclass `HookedModule`.
    """

    dni: Dni
    dni_keeps_key_order = False  # True: dicts among the arguments must have their keys in the order of the example

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OF_GRAPH_MODULE and not isinstance(value, Tensor | nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def recompile(self) -> PythonCode:
        self.graph.set_codegen(AnyNames())
        connect_pieces(self)
        code = super().recompile()
        self.dni_set_forward(type(self).forward)
        return code

    def dni_set_forward(self, forward: Callable[..., Any]) -> None:
        """Let this net run a function as its forward, with the signature of the model's."""
        set_signature(type(self), forward, self.dni_captured.original, context=self.dni_takes_context())

    def get_submodule(self, target: str) -> nn.Module:
        """The submodule at a dotted path, whatever its name."""
        found = at_path(self, target)
        if not isinstance(found, nn.Module):
            raise AttributeError(f"`{target}` is not an nn.Module")
        return found

    @property
    def dni_original(self) -> nn.Module:
        """The model that was captured, for code that runs it or reads its signature; never None."""
        assert self.dni_captured.original is not None
        return self.dni_captured.original

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in place of the net: the plain model.

        Raises:
            DniFxError: In train mode.
        """
        if self.training:
            raise DniFxError(ops.TRACED)
        return plain(self) if self.dni_captured.original is None else self.dni_share_with_original()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the Trainer of transformers may pass more arguments, for the loss, than the model was captured with.

        It reads this, or else looks for **kwargs in the signature of `forward`, which is the model's.
        """
        original = self.dni_captured.original
        if self.dni_runs_graph or original is None:
            return False
        return bool(getattr(original, "accepts_loss_kwargs", takes_any_keyword(original.forward)))

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The names of the parameters that DistributedDataParallel leaves out; it reads this when it wraps the net."""
        return [] if self.dni.averaging is None else self.dni.averaging.take(self)

    def dni_settings(self) -> dict[str, Any]:
        """Plain literals, by attribute name, that a saved class needs besides the graph.

        Raises:
            SourceError: If the graph reads a value that has no text form.
        """
        reads = tuple((read.module, read.steps, read.text) for read in self.dni_captured.reads if read.has_text_form)
        return {"dni_reads": reads, "dni_forms": dict(self.dni_captured.forms)}

    def dni_apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Restore the facts of the capture from a result of `dni_settings`; folders of older versions lack some."""
        reads = Reads([Read(*read) for read in settings.get("dni_reads", ())])
        self.dni_captured = replace(self.dni_captured, reads=reads, forms=settings.get("dni_forms", {}))

    def dni_takes_context(self) -> bool:
        return hasattr(self, "dni") and self.dni.plan.takes_context

    def dni_values_for(self, inputs: Inputs) -> list[Any]:
        """The values of the placeholders, in order: the arguments of `fx.Interpreter.run`."""
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        values = list(inputs.args)
        for node in placeholders[len(values) :]:
            default = node.args[0] if node.args else None
            values.append(inputs.kwargs.get(str(node.target), default))
        return values

    def dni_state_paths(self, arguments: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
        """For each tensor of each argument: the name of its placeholder, and its path in the placeholder's value."""
        names = {str(node.target): node.name for node in self.graph.nodes if node.op == "placeholder"}
        return {n: [(names[n], path) for path in by_path(value)] for n, value in arguments.items() if n in names}

    def dni_result(self, inputs: Inputs) -> Result:
        """The structure and the values of the result of a call of the model on these inputs."""
        return result_of_graph(self.graph)

    def dni_own_loss(self) -> str:
        """The name of the node of the loss that the model returns itself; empty: it returns none."""
        loss = own_loss(self.graph)
        return "" if loss is None else loss.name

    def dni_uncut(self) -> nn.Module:
        """A module without cuts that computes the same as the captured model, on the same parameters."""
        return plain(self)

    def dni_run_stamped(self, inputs: Inputs, stamp: Stamp) -> Any:
        """Run the captured model, and call `stamp` after each node."""
        return _Stamping(self, stamp).run(*self.dni_values_for(inputs))

    def dni_shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that the nodes compute in a call on these inputs, by node."""
        return self.dni_read(inputs, lambda _node, tensor: tuple(tensor.shape))

    def dni_read(self, inputs: Inputs, read: Callable[[str, Tensor], T]) -> dict[str, T]:
        """The results of `read(node, tensor)` for the tensors that the nodes compute in a call, by node."""
        found: dict[str, T] = {}
        _Reading(self, read, found).run(*self.dni_values_for(inputs))
        return found

    def dni_preferred_ends(self) -> frozenset[str]:
        """Names of the nodes after which automatic cuts may go; empty: after any node."""
        return frozenset()

    def train(self, mode: bool = True) -> "DecoupledModule":
        """Set train or eval mode by the model's own `train`, if defined, which may keep modules in eval mode."""
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
        optimizer = self.dni.optimizer if hasattr(self, "dni") else None
        if isinstance(optimizer, StepsSegments):
            memo[id(optimizer)] = optimizer.copy_for(result)
        result.dni_compare()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, import_block) = super().__reduce__()
        body.pop("_compiled_call_impl", None)  # a copy is not compiled
        return _unpickle, (
            _base(self),
            type(self).__name__,
            body,
            import_block,
            # Sorted as in the generated code, which has all placeholders first.
            [n.name for n in sorted(self.graph.nodes, key=lambda node: node.op != "placeholder")],
        )


def rewritten(net: object) -> DecoupledModule:
    """Return `net`, if `dni_fx.transform` or `dni_fx.load` made it.

    Raises:
        DniFxError: If not.
    """
    if not isinstance(net, DecoupledModule) or not hasattr(net, "dni"):
        raise not_rewritten(net)
    return net


def rewritten_in(module: nn.Module) -> list[DecoupledModule]:
    """The rewritten nets in a module, which may be one."""
    return [found for found in module.modules() if isinstance(found, DecoupledModule) and hasattr(found, "dni")]


def not_rewritten(net: object) -> DniFxError:
    """The error for an argument that is no rewritten module."""
    return DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")


class _Interpreter(fx.Interpreter):
    """Takes names that no attribute can have."""

    def fetch_attr(self, target: str) -> Any:
        return at_path(self.module, target)


class _Stamping(_Interpreter):
    def __init__(self, module: fx.GraphModule, stamp: Stamp) -> None:
        super().__init__(module)
        self.stamp = stamp

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.stamp(n.name)
        return value


class _Reading(_Interpreter, Generic[T]):
    """Calls `read` on each tensor."""

    def __init__(self, module: fx.GraphModule, read: Callable[[str, Tensor], T], found: dict[str, T]) -> None:
        super().__init__(module)
        self.read, self.found = read, found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = self.read(n.name, value)
        return value


def call_original(net: DecoupledModule, /, *args: Any, **kwargs: Any) -> Any:
    """Run the model that `net` was made from, on the parameters and buffers of `net`."""
    original = net.dni_original
    if torch.compiler.is_compiling():
        return_state(net, original)
        original.training = net.training
    else:
        net.dni_share_with_original()
    result = original(*args, **kwargs)
    net._buffers.update(original._buffers)  # forward may have assigned new tensors
    net._parameters.update(original._parameters)
    return result


def _base(net: DecoupledModule) -> type[DecoupledModule]:
    """The class of dni_fx that `net` is an instance of; fx makes a subclass for every graph."""
    return next(cls for cls in type(net).__mro__ if cls.__module__.startswith("dni_fx."))


def _unpickle(
    base: type[DecoupledModule], class_name: str, body: dict[str, Any], import_block: str, names: list[str]
) -> DecoupledModule:
    forward = _forward_from_src(import_block + body["_code"], {})  # which tracebacks can show
    shell = nn.Module()
    shell.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    graph = retrace(shell, forward)
    rename(graph, names)
    result = base(nn.Module(), fx.Graph(), class_name)
    result.__dict__.update({k: v for k, v in body.items() if k != "_code"})
    result.graph = graph
    result.dni_compare()
    return result


def make_module(
    model: nn.Module, graph: fx.Graph, captured: Captured, base: type[Module], holder: nn.Module | None = None
) -> Module:
    """A module of class `base` that runs `graph` on the submodules, parameters and buffers of `model` themselves.

    Args:
        captured: The module's `dni_captured`, of the class that `base` declares for it.
        holder: The module that has the constants of the graph as attributes; None: `model`.
    """
    holder = model if holder is None else holder
    for node in graph.nodes:
        free_reserved_name(node)
    net = base(nn.Module(), fx.Graph(), type(model).__name__)
    share_state(model, net)
    read = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    constants = [name for name in read if name in vars(model) or not has_path(model, name)]
    flat = {name: _add_constant(net, name.replace(".", "_"), at_path(holder, name)) for name in constants}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = flat.get(node.target, node.target)
    net.graph = graph
    net.training = model.training
    net.dni_captured = captured
    if captured.original is not None:
        net.dni_linked = linked(net, captured.original)
        captured.reads.changed(captured.original)
    return net


def _add_constant(net: nn.Module, name: str, value: Any) -> str:
    """Give a module a value that the graph reads; return the name, which is a new one if the module has the name."""
    while any(name in getattr(net, kind) for kind in REGISTERED):
        name += "_constant"
    if isinstance(value, Tensor):
        net._buffers[name] = value.detach()
        net._non_persistent_buffers_set.add(name)
    else:
        net._modules[name] = value
    return name


def plain(net: DecoupledModule) -> DecoupledModule:
    """A module with the captured graph, before the rewrite, on the parameters of `net`."""
    result: DecoupledModule = _base(net)(nn.Module(), fx.Graph(), type(net).__name__)
    share_state(net, result, without={"dni"})
    graph = fx.Graph()
    graph.output(graph.graph_copy(net.graph, {})).meta = dict(net.graph.output_node().meta)
    result.graph = graph
    RemoveDni()(result)
    lint(result.graph)
    result.dni_captured = net.dni_captured
    result.recompile()
    result.training = net.training
    return result
