"""The module of the front end `modules`: the original runs, and forward hooks cut the outputs of its submodules."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.graph import PythonCode
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.model import by_name, by_path, replaced, tensors_in, with_arguments
from dni_fx.plans import crossing_name, time_name
from dni_fx.runtime.module import DecoupledModule, call_original

__all__ = ["HookedModule", "Output"]


class HookedModule(DecoupledModule):
    """Runs the original model; while training, cuts the outputs of the submodules that the plan names.

    Its graph is the record of one step: the calls in the order in which they returned, with the cuts between them.
    """

    def dni_settings(self) -> dict[str, Any]:
        outputs = {node: (o.module, o.call, o.leaf) for node, o in self.__dict__["dni_outputs"].items()}
        return {"dni_outputs": outputs, "dni_written": self.__dict__["dni_written"]}

    def dni_recall(self, settings: Mapping[str, Any]) -> None:
        self.__dict__["dni_outputs"] = {node: Output(*o) for node, o in settings["dni_outputs"].items()}
        self.__dict__["dni_written"] = settings["dni_written"]

    def recompile(self) -> PythonCode:
        code = super().recompile()
        cls: Any = type(self)
        cls.forward = _run_original
        return code


def _run_original(self: HookedModule, *args: Any, dni_context: Tensor | None = None, **kwargs: Any) -> Any:
    """Stands for `forward`."""
    if not (self.training and torch.is_grad_enabled() and hasattr(self, "dni")):
        return call_original(self, *args, **kwargs)
    in_time = bool(self.dni.plan.states)
    if in_time:
        args, kwargs = _begun(self, args, kwargs)
    with _hooks(self, dni_context):
        result = call_original(self, *args, **kwargs)
    if in_time:
        result = _ended(self, result)
    if hasattr(self.dni, "outcome"):
        self.dni.get_submodule("outcome")(next(t for t in tensors_in(result) if t.requires_grad), dni_context)
    return result


@torch.compiler.disable(reason=ops.FROM_WINDOW_TO_WINDOW)  # type: ignore[untyped-decorator]
def _begun(net: HookedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a window, with the state that its cut in time gives."""
    forward = net.__dict__["dni_original"].forward
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
def _ended(net: HookedModule, result: Any) -> Any:
    """What a window gives, with its state cut off, and the rest bringing the prediction for it."""
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
def _hooks(net: HookedModule, context: Tensor | None) -> Iterator[None]:
    """Hooks on the cut submodules, for one forward pass: the person's model is theirs again after it."""
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
        output: Output = net.__dict__["dni_outputs"][place.after]
        places.setdefault(output.module, {})[output.call] = cut
    return places


def _cut(net: HookedModule, cut: int, output: Any, context: Tensor | None) -> Any:
    """The output of a call with its crossing tensors handed on, cut off."""
    leaves, spec = pytree.tree_flatten(output)
    names = [tensor.node for tensor in net.dni.plan.cuts[cut].tensors]
    where = [net.__dict__["dni_outputs"][name].leaf for name in names]
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
        # As in `passes.copy_written`: what `decouple` gives is a view, which autograd lets nobody write to.
        following = [h.clone() for h in cut_off] if net.__dict__["dni_written"] else list(cut_off)
    for i, value in zip(where, following, strict=True):
        leaves[i] = value
    return pytree.tree_unflatten(leaves, spec)


@dataclass(frozen=True)
class Output:
    """What a node of the record stands for: one tensor in the output of one call of a submodule."""

    module: str
    call: int
    leaf: int
