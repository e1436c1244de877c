"""The exits of a model without a graph: from a cut, the model itself runs again, and leaves blocks out.

What was computed below the cut is not computed again: those submodules return the outputs that they had, without
gradient. A block that is left out returns what the block before it has returned.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dni_fx.model import tensors_in
from dni_fx.runtime.module import DecoupledModule

__all__ = ["Passed"]

_Call = tuple[str, int]  # a submodule, and the number of its call
_Crossing = Callable[[Sequence[Tensor]], Any]


class NoLossError(Exception):
    """The model has not returned its own loss in this call."""


class Passed:
    """The outputs of the outermost submodules below the cuts, in one pass of the net that has exits.

    Args:
        net: A `HookedModule`.
        given: The arguments of the call.

    Attributes:
        names: The submodules whose outputs are kept.
    """

    def __init__(self, net: DecoupledModule, given: tuple[Sequence[Any], Mapping[str, Any]]) -> None:
        self.net, self.given = net, given
        self.outputs: dict[str, list[Any]] = {}
        captured: Any = net.dni_captured
        self.calls: Mapping[str, _Call] = {name: (o.module, o.call) for name, o in captured.outputs.items()}
        cuts = [self.calls[cut.after][0] for cut in net.dni.plan.cuts if cut.exit is not None]
        self.names = {name for cut in cuts for name in _outermost_below(net.dni_original, cut)}

    def keep(self, name: str, output: Any) -> None:
        """Keep the output of a call, without gradient."""
        if name in self.names:
            kept = pytree.tree_map_only(Tensor, torch.Tensor.detach, output)
            self.outputs.setdefault(name, []).append(kept)

    def gradients(
        self, cut: int, tensors: Sequence[Tensor], at_cut: _Crossing, context: Any
    ) -> tuple[Tensor | None, ...] | None:
        """The gradients from the exit at a cut; None: the model returns no loss in this call.

        Args:
            tensors: The crossing tensors, detached.
            at_cut: Returns the output of the call at the cut, with other crossing tensors in it.
        """
        exit = self.net.dni.exits[cut]
        try:
            return exit.through(self._from(cut, at_cut), tensors, [self.net.dni_original], context)
        except NoLossError:
            warnings.warn(
                "the model returns no loss in this call, in train mode, so its exits have no gradients and nothing is "
                "cut: give it labels, or give dni_fx.transform loss= and an example without labels",
                stacklevel=2,
            )
            return None

    def _from(self, cut: int, at_cut: _Crossing) -> _Crossing:
        """A function that runs the model from a cut, and returns its result, or its own loss."""
        model, planned = self.net.dni_original, self.net.dni.plan.cuts[cut].exit
        assert planned is not None
        here = self.calls[self.net.dni.plan.cuts[cut].after]
        left_out = {self.calls[name] for name in planned.bypassed}
        blocks = {self.calls[name][0] for pair in planned.bypassed.items() for name in pair}
        before = {(name, call): kept for name, outputs in self.outputs.items() for call, kept in enumerate(outputs)}

        def run(crossing: Sequence[Tensor]) -> Any:
            known = before | {here: at_cut([tensor.clone() for tensor in crossing])}  # the model may write to them
            last: dict[str, Any] = {}

            def forward_of(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
                parent, calls = name.rpartition(".")[0], itertools.count()

                def replaced(*args: Any, **kwargs: Any) -> Any:
                    call = name, next(calls)
                    if call in left_out:
                        return last[parent]
                    last[parent] = known[call] if call in known else forward(*args, **kwargs)
                    return last[parent]

                return replaced

            with _replaced(model, {*self.outputs, here[0], *blocks}, forward_of):
                # Running statistics must not move a second time.
                buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
                result = torch.func.functional_call(model, buffers, tuple(self.given[0]), dict(self.given[1]))
            if planned.loss:
                losses = [t for t in tensors_in(result) if t.requires_grad and not t.dim()]
                if not losses:
                    raise NoLossError
                return losses[0]
            return result

        return run


def _outermost_below(model: nn.Module, cut: str) -> set[str]:
    """The outermost submodules whose calls can end before a cut, among them the submodule of the cut."""
    around = {"", *(cut[:place] for place, letter in enumerate(cut) if letter == ".")}
    names = [name for name, _ in model.named_modules() if name]
    return {name for name in names if name.rpartition(".")[0] in around and name not in around}


@contextlib.contextmanager
def _replaced(
    model: nn.Module, names: set[str], forward_of: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward methods of submodules."""
    modules = {name: model.get_submodule(name) for name in names}
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        vars(module)["forward"] = forward_of(name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            del vars(module)["forward"]
            if before[name] is not None:
                vars(module)["forward"] = before[name]
