"""The front end `fx`: torch.fx symbolic tracing that keeps layers whole."""

import copy
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.capture.attributes import recorded_reads
from dni_fx.capture.checkpoints import on_checkpoint
from dni_fx.capture.places import failing_line, set_line
from dni_fx.capture.values import refused_values
from dni_fx.errors import CaptureError, first_line
from dni_fx.model import Captured, Inputs, Reads, Snapshot, by_path, preserved, shown
from dni_fx.runtime import DecoupledModule, make_module, unusable_argument

__all__ = ["capture_by_fx"]

_MAX_LEAVES = 200  # modules that may become leaves because tracing failed inside them


class _StandIn(fx.Proxy):
    """Stands for a value. fx itself loses every assignment to an attribute of a stand-in."""

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _StandInAttribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise CaptureError(f"forward assigns {name!r} of a tensor, which a trace would lose")
        super().__setattr__(name, value)


class _StandInAttribute(fx.proxy.Attribute, _StandIn):
    """Stands for an attribute of a value."""


class LeafTracer(fx.Tracer):
    """Keeps as leaves: torch.nn layers, modules that read `self.training` or have hooks, and modules in `leaves`.

    A trace would fix the mode of a module that reads `self.training` (pytorch#68190).
    """

    proxy_buffer_attributes = True  # else operations on buffers alone run in the trace, which would fix their results

    def __init__(self, inputs: Inputs, leaves: set[str]) -> None:
        super().__init__()
        self.inputs = inputs
        self.leaves = leaves
        self.entered: list[str] = []
        self.lost_checkpoints = False
        self.forms: dict[str, tuple[tuple[int | str, ...], ...] | None] = {}  # `Captured.forms`

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            super().is_leaf_module(m, module_qualified_name)
            or module_qualified_name in self.leaves
            or isinstance(m, fx.GraphModule)
            or _has_hooks(m)
            or reads_training(vars(m).get("forward", type(m).forward))
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.entered.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return result

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def keep_whole(self) -> None:
        """Make the module that is being traced a leaf, since it calls activation checkpointing.

        If it is the model itself, the graph loses the checkpointing.
        """
        if self.entered:
            raise CaptureError("activation checkpointing")
        self.lost_checkpoints = True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Write the module calls around the node, which fx leaves out under `preserve_node_meta`, and the line."""
        node = super().create_node(*args, **kwargs)
        if node.op.startswith("call"):
            set_line(node)
        if self.module_stack:
            node.meta["nn_module_stack"] = copy.copy(self.module_stack)
        return node

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make placeholders for the tensors of the example inputs; every other argument keeps its value.

        `concrete_args` of fx would rename the arguments that it fixes.
        """
        forward = self.root.forward  # its own signature, also if it is a static method
        signature = inspect.signature(forward)
        bound = signature.bind(*self.inputs.args, **self.inputs.kwargs)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                values = bound.arguments.get(name, ())
                bound.arguments[name] = tuple(self._argument(f"{name}_{i}", v, None) for i, v in enumerate(values))
            elif parameter.kind is parameter.VAR_KEYWORD:
                extra = bound.arguments.get(name, {})
                bound.arguments[name] = {k: self._argument(k, v, None) for k, v in extra.items()}
            elif name in bound.arguments:
                bound.arguments[name] = self._argument(name, bound.arguments[name], parameter.default)
            else:
                bound.arguments[name] = self._argument(name, parameter.default, parameter.default)
        return (lambda *_: forward(*bound.args, **bound.kwargs)), [self.root]

    def _argument(self, name: str, value: Any, default: Any = inspect.Parameter.empty) -> Any:
        """A placeholder for an argument that holds tensors; else the value, which the graph checks at each call."""
        has_tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
        has_default = default is not inspect.Parameter.empty
        if not has_tensors:
            try:
                self.create_arg(value)
            except NotImplementedError:  # a graph cannot hold this value
                if value is not default:
                    raise CaptureError(f"argument {name!r} is {shown(value)}, which no graph holds") from None
                return value  # the argument leaves the signature
            default, has_default = (default if has_default else value), True
        self.forms[name] = tuple(by_path(value)) if has_tensors else None
        proxy = self.create_proxy("placeholder", name, (default,) if has_default else (), {})
        if has_tensors:
            return proxy
        self.create_proxy("call_function", ops.specialised, (name, proxy, value), {})
        return value


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks: a trace would call forward hooks with proxies, and lose backward hooks."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def reads_training(function: Callable[..., Any]) -> bool:
    """Whether the code of `function`, or of a function defined in it, uses the name `training`."""

    def names(code: CodeType) -> bool:
        return "training" in code.co_names or any(names(c) for c in code.co_consts if isinstance(c, CodeType))

    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and names(code)


class _UnusableArgument(CaptureError):
    """An argument whose name generated code cannot have."""


def _check_arguments(model: nn.Module, graph: fx.Graph) -> None:
    name = unusable_argument(graph)
    if name is not None:
        raise _UnusableArgument(
            f"forward of {type(model).__name__} takes an argument {name!r}, which is no name that generated code can "
            'give to an argument: rename it, or use frontend="modules"'
        )


def capture_by_fx(model: nn.Module, inputs: Inputs, whole: Iterable[str] = ()) -> DecoupledModule:
    """Trace a model into a module on the model's own parameters and buffers.

    The modules named in `whole` are leaves. If tracing fails inside another, it becomes a leaf, in a new trace.

    Raises:
        CaptureError: If the model's own forward cannot be traced.
    """
    if _has_hooks(model):
        raise CaptureError(
            f"{type(model).__name__} has hooks, which a trace loses: transform the model without them, and register "
            'them on the net; or use frontend="modules", which runs them'
        )
    forward = vars(model).get("forward", type(model).forward)
    if reads_training(forward) and not isinstance(model, fx.GraphModule):
        raise CaptureError(
            f"{_place(forward)}: forward of {type(model).__name__} reads self.training, which a trace "
            "would fix for ever; move that part into a submodule, which is then kept whole"
        )
    leaves = set(whole)
    while True:
        tracer = LeafTracer(inputs, leaves)
        try:
            with (
                preserved(model) as before,
                on_checkpoint(tracer.keep_whole),
                fx.traceback.preserve_node_meta(),
            ):
                with recorded_reads(model) as reads, refused_values(model):
                    graph = tracer.trace(model)
                _check_unchanged(before)
                graph._tracer_cls = None  # so that pickling traces the generated code again with the default tracer
                _check_arguments(model, graph)
                fixed = Reads([read for read in reads if not read.is_mode])  # `verify` compares both modes
                captured = Captured(model, tracer.lost_checkpoints, fixed, tracer.forms)
                return make_module(model, graph, captured, DecoupledModule)
        except _UnusableArgument:
            raise
        except Exception as error:  # user code may raise any error when it meets a proxy
            _retry(model, tracer, leaves, error)


def _retry(model: nn.Module, tracer: LeafTracer, leaves: set[str], error: Exception) -> None:
    """Make the submodule in which tracing failed a leaf, or raise a CaptureError if that is not possible."""
    failed = tracer.entered[-1] if tracer.entered else ""
    if failed and failed not in leaves and len(leaves) < _MAX_LEAVES:
        leaves.add(failed)
        return
    place, line = failing_line(error)
    place, line = place or "forward", line or type(error).__name__
    reason = first_line(error)
    raise CaptureError(
        f"cannot trace {type(model).__name__}: {place}: {line!r}: {reason}. Move the part that depends on values, or "
        "that plain Python has to run, into a submodule of its own: it is then kept whole"
    ) from None


def _check_unchanged(before: Snapshot) -> None:
    """Raise a CaptureError if the trace ran a write to a parameter: the graph does not hold the write."""
    changed = next(iter(before.changed()), "")
    if changed:
        raise CaptureError(f"forward writes to {changed!r}, which a trace does not hold")


def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
