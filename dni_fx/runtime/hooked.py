"""The module of the front end `modules`: the original runs, and forward hooks cut the outputs of its submodules."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

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
    replaced,
    tensors_in,
    with_arguments,
)
from dni_fx.plans import crossing_name, time_name
from dni_fx.runtime.module import DecoupledModule, Stamp, call_original
from dni_fx.runtime.outputs import GivenTensor, Place, Result

__all__ = ["HookedCapture", "HookedModule", "Output"]


@dataclass(frozen=True)
class Output:
    """The tensor that a node of the record is: a leaf of the output of one call of a submodule."""

    module: str
    call: int
    leaf: int


@dataclass(frozen=True)
class HookedCapture(Captured):
    """What a capture by forward hooks knows, beside its record.

    Attributes:
        outputs: The tensor that each node of the record is, by the node's name.
        written: The model writes in place to an output of a submodule.
    """

    outputs: Mapping[str, Output] = field(default_factory=dict)
    written: bool = False


class HookedModule(DecoupledModule):
    """Runs the original model; while training, cuts the outputs of the submodules that the plan names.

    Its graph is the record of one step: the calls in the order in which they returned, with the cuts between them.
    """

    dni_captured: HookedCapture = HookedCapture()
    dni_runs_graph = False

    def recompile(self) -> PythonCode:
        code = super().recompile()
        cls: Any = type(self)
        cls.forward = _forward
        return code

    def dni_settings(self) -> dict[str, Any]:
        outputs = {node: (o.module, o.call, o.leaf) for node, o in self.dni_captured.outputs.items()}
        return {"dni_outputs": outputs, "dni_written": self.dni_captured.written}

    def dni_recall(self, settings: Mapping[str, Any]) -> None:
        outputs = {node: Output(*o) for node, o in settings["dni_outputs"].items()}
        self.dni_captured = replace(self.dni_captured, outputs=outputs, written=settings["dni_written"])

    def dni_state_places(self, given: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
        return {name: [(name, path) for path in by_path(value)] for name, value in given.items()}

    def dni_result(self, inputs: Inputs) -> Result:
        """What the model returns: it runs once, in train mode."""
        with preserved(self.dni_original), torch.enable_grad():
            in_train_mode(self.dni_original)
            fresh = inputs.map(lambda t: t.detach().clone())
            leaves, spec = pytree.tree_flatten(self.dni_original(*fresh.args, **fresh.kwargs))
        boxes = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor) and tensors_in(leaf)]
        if boxes:
            raise DniFxError(f"state: the model gives tensors in a {boxes[0]}: give them in a tuple or dict")
        structure = [Place(i) if isinstance(leaf, Tensor) else leaf for i, leaf in enumerate(leaves)]
        given = [
            GivenTensor(tuple(leaf.shape), leaf.requires_grad) if isinstance(leaf, Tensor) else GivenTensor(None, False)
            for leaf in leaves
        ]
        return Result(pytree.tree_unflatten(structure, spec), given)

    def dni_uncut(self) -> nn.Module:
        return self.dni_original

    def dni_run_stamped(self, inputs: Inputs, stamp: Stamp) -> Any:
        with _stamping(self, stamp):
            return call_original(self, *inputs.args, **inputs.kwargs)

    def dni_preferred_ends(self) -> frozenset[str]:
        """Those that end a call of a child of the Sequential or ModuleList that has most children called."""
        ends: dict[str, dict[str, str]] = {}
        for name, output in self.dni_captured.outputs.items():
            parent, _, _ = output.module.rpartition(".")
            if parent and isinstance(self.get_submodule(parent), nn.Sequential | nn.ModuleList):
                ends.setdefault(parent, {})[f"{output.module}@{output.call}"] = name
        return frozenset(max(ends.values(), key=len).values()) if ends else frozenset()


def _forward(self: HookedModule, *args: Any, dni_context: Tensor | None = None, **kwargs: Any) -> Any:
    """Stands for `HookedModule.forward`, which fx writes for every graph anew."""
    if not (self.training and torch.is_grad_enabled() and hasattr(self, "dni")):
        return call_original(self, *args, **kwargs)
    in_time = bool(self.dni.plan.states)
    if in_time:
        args, kwargs = _enter_window(self, args, kwargs)
    with _cutting(self, dni_context):
        result = call_original(self, *args, **kwargs)
    if in_time:
        result = _leave_window(self, result)
    if hasattr(self.dni, "outcome"):
        self.dni.get_submodule("outcome")(next(t for t in tensors_in(result) if t.requires_grad), dni_context)
    return result


@torch.compiler.disable(reason=ops.FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _enter_window(
    net: HookedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a window, with the state that its cut in time gives."""
    forward = net.dni_original.forward
    given, tensors = by_name(forward, args, kwargs), net.dni.plan.states[0].tensors
    inputs = dict.fromkeys(tensor.input for tensor in tensors)
    flat = [
        tensor
        for name in inputs
        for tensor in ops.leaves(given.get(name), [own.path for own in tensors if own.input == name])
    ]
    entered = dict(zip(tensors, ops.enter(flat, net.dni.get_submodule(time_name(0))), strict=True))
    others = {
        name: replaced(given[name], {own.path: new for own, new in entered.items() if own.input == name})
        for name in inputs
    }
    return with_arguments(forward, args, kwargs, others)


@torch.compiler.disable(reason=ops.FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _leave_window(net: HookedModule, result: Any) -> Any:
    """The result of a window with its state cut off; its other tensors carry the prediction for the state."""
    leaves = by_path(result)
    paths = [tensor.result for tensor in net.dni.plan.states[0].tensors]
    carrying = {
        id(leaf): leaf
        for path, leaf in leaves.items()
        if path not in paths and isinstance(leaf, Tensor) and leaf.requires_grad
    }
    left = ops.leave(list(carrying.values()), [leaves[path] for path in paths], net.dni.get_submodule(time_name(0)))
    following = dict(zip(carrying, left, strict=False))
    others = {path: following[id(leaf)] for path, leaf in leaves.items() if path not in paths and id(leaf) in following}
    return replaced(result, others | dict(zip(paths, left[len(carrying) :], strict=True)))


@contextmanager
def _cutting(net: HookedModule, context: Tensor | None) -> Iterator[None]:
    """Hold forward hooks on the cut submodules for one forward pass; none stays on the model."""
    calls: Counter[str] = Counter()
    busy = False  # checkpointed blocks run forward once more inside a backward pass

    def hook_of(name: str, cuts: dict[int, int]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal busy
            if busy:
                return None
            call = calls[name]
            calls[name] += 1
            if call not in cuts or not torch.is_grad_enabled():
                return None
            busy = True
            try:
                return _cut(net, cuts[call], output, context)
            finally:
                busy = False

        return hook

    places = _places(net)
    handles = [net.get_submodule(name).register_forward_hook(hook_of(name, cuts)) for name, cuts in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(net: HookedModule) -> dict[str, dict[int, int]]:
    """For each submodule that is cut: which of its calls ends which segment."""
    places: dict[str, dict[int, int]] = {}
    for cut, place in enumerate(net.dni.plan.cuts):
        output = net.dni_captured.outputs[place.after]
        places.setdefault(output.module, {})[output.call] = cut
    return places


def _cut(net: HookedModule, cut: int, output: Any, context: Tensor | None) -> Any:
    """The output of a call, with its crossing tensors cut off."""
    leaves, spec = pytree.tree_flatten(output)
    names = [tensor.node for tensor in net.dni.plan.cuts[cut].tensors]
    where = [net.dni_captured.outputs[name].leaf for name in names]
    crossing = [leaves[i] for i in where]
    detached = [h.detach() for h in crossing]
    arguments = () if context is None else (context,)
    synthesizers = [net.dni.get_submodule(crossing_name(cut, name)) for name in names]
    predictions = [synthesizer(h, *arguments) for synthesizer, h in zip(synthesizers, detached, strict=True)]
    settings = net.dni.plan.rewrite
    assert settings is not None
    segment = net.dni.segments[cut]
    if settings.unlock == "none":
        following = list(ops.inject(crossing, detached, predictions, segment))
    else:
        cut_off = ops.decouple(crossing, detached, predictions, segment)
        # As in `passes.copy_written`: `decouple` returns views, and autograd allows no in-place write to those.
        following = [h.clone() for h in cut_off] if net.dni_captured.written else list(cut_off)
    for i, value in zip(where, following, strict=True):
        leaves[i] = value
    return pytree.tree_unflatten(leaves, spec)


@contextmanager
def _stamping(net: HookedModule, stamp: Stamp) -> Iterator[None]:
    """Call `stamp` as each submodule returns: the record has a node for every call, in that order."""
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
