"""One segment while the net runs: its parameters, its local backward pass, the share of the true gradient."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.ops.gradients import finite
from dni_fx.settings import Mix, Training

__all__ = ["TWICE", "Accumulated", "Segment", "check_not_erased"]

_WITNESSES = 4  # gradients of a segment that are looked at, to see later whether they were erased


@dataclass
class Accumulated:
    """A gradient at the end of a local backward pass."""

    parameter: nn.Parameter
    version: int
    nonzero: Tensor | None = None


class Segment(nn.Module):
    """What is to be known, while the net runs, of one segment and of the cut above it.

    Holds the segment's parameters without owning them: state_dict does not list them twice.

    Attributes:
        mix: Share of the true gradient that is handed upstream; or from where to where it goes, in how many steps.
        warmup: Steps at the beginning in which that share is 1.
        clip: Largest norm of one sample's target; 0: no limit.
        steps: Training steps so far, always on the CPU, where the share varies.
        skipped: How often a prediction or a target was dropped, for it was not finite.
    """

    skipped: Tensor

    def __init__(self, mix: Mix = 0.0, training: Training = Training()) -> None:  # noqa: B008  # frozen
        super().__init__()
        self.mix = mix
        self.warmup = training.warmup
        self.clip = training.clip or 0.0
        self.steps = torch.zeros((), dtype=torch.int64)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.hold(())
        self.index = self.generation = 0
        self.__dict__.update(optimizer=None, averaging=None)

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        # The smallest first: they are the witnesses.
        self.__dict__["held"] = tuple(sorted(parameters, key=lambda p: p.numel()))

    def tell(self, index: int, **who: Any) -> None:
        """Who is told when this segment, by its number, has gone backward: an `optimizer`, or an `averaging`."""
        self.index = index
        self.__dict__.update(who)

    def freed(self) -> None:
        """The gradients have been used: from now on nobody misses them."""
        self.generation += 1

    def run_backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """The local backward pass."""
        optimizer, averaging = self.__dict__["optimizer"], self.__dict__["averaging"]
        device = self.skipped.device.type
        cast = torch.is_autocast_enabled(device)  # a backward pass takes the dtypes that forward took
        with (
            torch.autocast(device, enabled=False) if cast else contextlib.nullcontext(),
            contextlib.nullcontext() if optimizer is None else optimizer.local(self.index),
        ):
            if roots:
                _go_backward(roots, gradients)
            if averaging is not None:
                averaging.start(self.index)
                if optimizer is not None:
                    averaging.finish()

    def accumulated(self) -> list[Accumulated]:
        """What the parameters have for a gradient now; of the smallest ones, also whether it is zero."""
        found = [Accumulated(p, p.grad._version) for p in self.__dict__["held"] if p.grad is not None]
        for one in found[:_WITNESSES]:
            one.nonzero = one.parameter.grad.any()  # type: ignore[union-attr]  # stays on the device: nobody waits
        return found

    @property
    def varies(self) -> bool:
        """Whether the share of the true gradient changes from step to step."""
        return isinstance(self.mix, tuple) or self.warmup > 0

    def next_mix(self) -> float:
        """The share of the true gradient in the step that begins."""
        if not self.varies:
            return float(self.mix)  # type: ignore[arg-type]
        if torch.compiler.is_compiling():
            raise DniFxError("a warm-up or a mix that changes cannot be compiled: compile when they are over")
        self.steps += 1
        done = int(self.steps) - 1 - self.warmup
        if done < 0:
            return 1.0
        if not isinstance(self.mix, tuple):
            return float(self.mix)
        start, end, steps = self.mix
        return start + (end - start) * min(done / steps, 1.0)

    def keep_finite(self, gradient: Tensor) -> Tensor | None:
        """The gradient; if anything in it is not finite, it is counted, and None, or zeros where a look would wait."""
        kept, ok = finite(gradient)
        if ok is not True:
            self.skipped += 1 if ok is False else ~ok
        return kept

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.varies:
            destination[f"{prefix}steps"] = self.steps.clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        steps = state_dict.pop(f"{prefix}steps", None)
        if steps is not None:
            self.steps = steps.detach().cpu().clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _go_backward(roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    try:
        torch.autograd.backward(roots, gradients)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise BackwardOrderError(
            "a segment's backward pass ran into a graph that another one has freed: with unlock='backward' an input "
            "must not carry gradient from an earlier call of the net, or of layers that others use, too: detach it, or "
            "use unlock='none'"
        ) from error


TWICE = (
    "two backward passes through one forward pass: the target of a synthesizer comes once, and with "
    "unlock='backward' what is below the cuts has gone backward in forward. Add the losses up, and go backward from "
    "the sum"
)


def check_not_erased(accumulated: Sequence[Accumulated]) -> None:
    erased = any(one.parameter.grad is None for one in accumulated)
    if not erased:
        # zero_grad(set_to_none=False) leaves zeros. Look at values only where something wrote to them: on a
        # GPU a look waits for the device. A gradient that was zero before tells nothing.
        witnesses = [(one.nonzero, one.parameter.grad, one.version) for one in accumulated]
        now = [
            g for was, g, version in witnesses if was is not None and g is not None and g._version != version and was
        ]
        erased = bool(now) and not any(bool(g.any()) for g in now)
    if erased:
        raise BackwardOrderError(
            "zero_grad() was called between the forward and the backward pass, and erased gradients that "
            'unlock="backward" had already accumulated during forward. Move zero_grad() before the forward '
            "pass: opt.zero_grad(); loss = criterion(net(x), y); loss.backward(); opt.step()"
        )
