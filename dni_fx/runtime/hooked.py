"""The module of the front end `modules`: the original runs, and forward hooks cut the outputs of its submodules."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.graph import PythonCode
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.model import (
    Captured,
    Inputs,
    Path,
    by_name,
    by_path,
    in_train_mode,
    preserved,
    tensors_in,
    with_arguments,
    with_leaves,
)
from dni_fx.plans import crossing_name
from dni_fx.runtime.hooked_exits import Passed
from dni_fx.runtime.module import DecoupledModule, Stamp, call_original
from dni_fx.runtime.outputs import Result, ReturnedIndex, ReturnedValue
from dni_fx.runtime.time_cut import time_cuts

__all__ = ["HookedCapture", "HookedModule", "Output"]

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """The tensor that a node of the record stands for: a leaf of the output of one call of a submodule."""

    module: str
    call: int
    leaf: int


@dataclass(frozen=True)
class HookedCapture(Captured):
    """The facts about a model that was captured by forward hooks, which the record does not hold.

    Attributes:
        outputs: The tensor that each node of the record stands for, by the node's name.
        written: The model writes in place to an output of a submodule.
        returns_loss: One scalar that carries gradient is among the results: the model's own loss.
    """

    outputs: Mapping[str, Output] = field(default_factory=dict)
    written: bool = False
    returns_loss: bool = False


class HookedModule(DecoupledModule):
    """Runs the original model, and in training cuts the outputs of the submodules that the plan names.

    The graph does not run. It is the record of one step: the calls of submodules in the order in which they returned.
    """

    dni_captured: HookedCapture = HookedCapture()
    dni_runs_graph = False

    def recompile(self) -> PythonCode:
        code = super().recompile()
        self.dni_set_forward(_forward)
        return code

    def dni_settings(self) -> dict[str, Any]:
        outputs = {node: (o.module, o.call, o.leaf) for node, o in self.dni_captured.outputs.items()}
        return super().dni_settings() | {"dni_outputs": outputs, "dni_written": self.dni_captured.written}

    def dni_apply_settings(self, settings: Mapping[str, Any]) -> None:
        super().dni_apply_settings(settings)
        outputs = {node: Output(*o) for node, o in settings["dni_outputs"].items()}
        self.dni_captured = replace(self.dni_captured, outputs=outputs, written=settings["dni_written"])

    def dni_state_paths(self, arguments: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
        return {name: [(name, path) for path in by_path(value)] for name, value in arguments.items()}

    def dni_result(self, inputs: Inputs) -> Result:
        """The structure and the values of the result: the model runs once, in train mode."""
        with preserved(self.dni_original), torch.enable_grad():
            in_train_mode(self.dni_original)
            fresh = inputs.map(lambda t: t.detach().clone())
            leaves, spec = pytree.tree_flatten(self.dni_original(*fresh.args, **fresh.kwargs))
        boxes = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor) and tensors_in(leaf)]
        if boxes:
            raise DniFxError(f"state: the model returns tensors in a {boxes[0]}: return them in a tuple or dict")
        structure = [ReturnedIndex(i) if isinstance(leaf, Tensor) else leaf for i, leaf in enumerate(leaves)]
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in leaves]
        carries = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        return Result(pytree.tree_unflatten(structure, spec), list(map(ReturnedValue, shapes, carries)))

    def dni_own_loss(self) -> str:
        return "loss" if self.dni_captured.returns_loss else ""

    def dni_uncut(self) -> nn.Module:
        return self.dni_original

    def dni_run_stamped(self, inputs: Inputs, stamp: Stamp) -> Any:
        with _stamping(self, stamp):
            return call_original(self, *inputs.args, **inputs.kwargs)

    def dni_read(self, inputs: Inputs, read: Callable[[str, Tensor], T]) -> dict[str, T]:
        calls: Counter[str] = Counter()
        found: dict[str, T] = {}
        nodes = {output: node for node, output in self.dni_captured.outputs.items()}

        def post_forward_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def post_forward(_module: nn.Module, _args: Any, output: Any) -> None:
                if torch.is_grad_enabled():
                    for i, leaf in enumerate(pytree.tree_leaves(output)):
                        node = nodes.get(Output(name, calls[name], i))
                        if node is not None and isinstance(leaf, Tensor):
                            found[node] = read(node, leaf)
                calls[name] += 1

            return post_forward

        names = {output.module for output in self.dni_captured.outputs.values()}
        handles = [self.get_submodule(name).register_forward_hook(post_forward_of(name)) for name in names]
        try:
            call_original(self, *inputs.args, **inputs.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def dni_preferred_ends(self) -> frozenset[str]:
        """The nodes that end calls of the children of one Sequential or ModuleList: the one with most such calls."""
        ends: dict[str, dict[str, str]] = {}
        for name, output in self.dni_captured.outputs.items():
            parent, _, _ = output.module.rpartition(".")
            if parent and isinstance(self.get_submodule(parent), nn.Sequential | nn.ModuleList):
                ends.setdefault(parent, {})[f"{output.module}@{output.call}"] = name
        return frozenset(max(ends.values(), key=len).values()) if ends else frozenset()


def _forward(self: HookedModule, *args: Any, **kwargs: Any) -> Any:
    """`HookedModule.forward`. It is assigned in `recompile`, since fx writes a new forward for every graph."""
    ops.check_not_symbolic(args)
    dni_context = kwargs.pop("dni_context", None)
    if not (self.training and torch.is_grad_enabled() and hasattr(self, "dni")):
        return call_original(self, *args, **kwargs)
    in_time = bool(self.dni.plan.states)
    if in_time:
        args, kwargs = _enter_window(self, args, kwargs)
    with _cutting(self, dni_context, (args, kwargs)):
        result = call_original(self, *args, **kwargs)
    if in_time:
        result = _leave_window(self, result)
    return result


@torch.compiler.disable(reason=ops.FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _enter_window(
    net: HookedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a window, in which the results of `ops.enter` replace the state."""
    forward = net.dni_original.forward
    arguments, state = by_name(forward, args, kwargs), net.dni.plan.states[0].tensors
    names = dict.fromkeys(tensor.input for tensor in state)
    values = [
        value
        for name in names
        for value in ops.leaves(arguments.get(name), [tensor.path for tensor in state if tensor.input == name])
    ]
    entered = dict(zip(state, ops.enter(values, time_cuts(net.dni)[0]), strict=True))
    new_arguments = {
        name: with_leaves(arguments[name], {tensor.path: v for tensor, v in entered.items() if tensor.input == name})
        for name in names
    }
    return with_arguments(forward, args, kwargs, new_arguments)


@torch.compiler.disable(reason=ops.FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _leave_window(net: HookedModule, result: Any) -> Any:
    """The result of a window with its state cut off; the other tensors carry the prediction for the state."""
    leaves = by_path(result)
    state_paths = [tensor.result for tensor in net.dni.plan.states[0].tensors]
    others = {path: leaf for path, leaf in leaves.items() if path not in state_paths and isinstance(leaf, Tensor)}
    outputs = {id(leaf): leaf for leaf in others.values() if leaf.requires_grad}  # a tensor may be at several paths
    state = [leaves[path] for path in state_paths]
    left = ops.leave(list(outputs.values()), state, time_cuts(net.dni)[0])
    new_outputs = dict(zip(outputs, left, strict=False))
    new_leaves = {path: new_outputs[id(leaf)] for path, leaf in others.items() if id(leaf) in new_outputs}
    return with_leaves(result, new_leaves | dict(zip(state_paths, left[len(outputs) :], strict=True)))


@contextmanager
def _cutting(net: HookedModule, context: Tensor | None, given: tuple[Any, Any]) -> Iterator[None]:
    """Register forward hooks that cut the outputs of submodules, and remove the hooks at the end.

    Args:
        given: The arguments of the call.
    """
    calls: Counter[str] = Counter()
    passed = Passed(net, given)
    is_cutting = False  # a cut runs a backward pass, in which checkpointed blocks run forward again

    def post_forward_of(name: str, cuts: dict[int, int]) -> Callable[[nn.Module, Any, Any], Any]:
        def post_forward(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal is_cutting
            if is_cutting:
                return None
            call = calls[name]
            calls[name] += 1
            if call not in cuts or not torch.is_grad_enabled():
                passed.keep(name, output)
                return None
            is_cutting = True
            try:
                cut_off = _cut(net, cuts[call], output, context, passed)
            finally:
                is_cutting = False
            passed.keep(name, cut_off)
            return cut_off

        return post_forward

    hooked: dict[str, dict[int, int]] = {**{name: {} for name in passed.names}, **_cut_calls(net)}
    handles = [
        net.get_submodule(name).register_forward_hook(post_forward_of(name, cuts)) for name, cuts in hooked.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut_calls(net: HookedModule) -> dict[str, dict[int, int]]:
    """For each submodule whose outputs are cut, by name: the index of the cut, by the number of the call."""
    cuts: dict[str, dict[int, int]] = {}
    for index, cut in enumerate(net.dni.plan.cuts):
        output = net.dni_captured.outputs[cut.after]
        cuts.setdefault(output.module, {})[output.call] = index
    return cuts


def _cut(net: HookedModule, cut: int, output: Any, context: Tensor | None, passed: Passed) -> Any:
    """The output of a call, in which the crossing tensors are cut off."""
    leaves, spec = pytree.tree_flatten(output)
    names = [tensor.node for tensor in net.dni.plan.cuts[cut].tensors]
    indices = [net.dni_captured.outputs[name].leaf for name in names]
    crossing = [leaves[i] for i in indices]
    detached = [h.detach() for h in crossing]
    contexts: Sequence[Any] = [context] * len(names)
    if cut in net.dni.exits:

        def at_cut(tensors: Sequence[Tensor]) -> Any:
            return pytree.tree_unflatten([*_with(leaves, indices, tensors)], spec)

        gradients = passed.gradients(cut, detached, at_cut, context)
        if gradients is None:
            return output
        contexts = gradients
    synthesizers = [net.dni.crossings[crossing_name(cut, name)] for name in names]
    predictions = [s(h, *(() if c is None else (c,))) for s, h, c in zip(synthesizers, detached, contexts, strict=True)]
    segment = net.dni.segments[cut]
    if net.dni.rewrite.unlock == "none":
        cut_off = list(ops.inject(crossing, detached, predictions, segment))
    else:
        cut_off = list(ops.decouple(crossing, detached, predictions, segment))
        if net.dni_captured.written:  # `decouple` returns views, to which autograd allows no in-place write
            cut_off = [h.clone() for h in cut_off]
    return pytree.tree_unflatten(_with(leaves, indices, cut_off), spec)


def _with(leaves: Sequence[Any], indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Leaves, of which some are replaced."""
    replaced = dict(zip(indices, values, strict=True))
    return [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]


@contextmanager
def _stamping(net: HookedModule, stamp: Stamp) -> Iterator[None]:
    """Call `stamp` after each call of a submodule: the record has one node for each call, in the same order."""
    calls = iter([node.name for node in net.graph.nodes if node.op == "call_module"])

    def post_forward(_module: nn.Module, _args: Any, _output: Any) -> None:
        name = next(calls, None) if torch.is_grad_enabled() else None
        if name is not None:
            stamp(name)

    handles = [m.register_forward_hook(post_forward) for name, m in net.dni_original.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
