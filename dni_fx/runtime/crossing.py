"""One tensor that crosses a cut: its synthesizer, its targets, its metrics."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import ContextError, DniFxError
from dni_fx.settings import Settings
from dni_fx.synthesizers import Activation, Carried, LossHead, centered, check_labels, expand_context

__all__ = ["MEASURES", "Crossing", "LossScale"]

# Steps between two looks at the targets; a look costs a few passes over the tensor. A prime: of what comes in turns,
# such as the windows of a sequence, each is seen.
MEASURE_EVERY = 19

MEASURES = ("cosine", "relative_error", "target_norm", "prediction_norm")


class LossScale:
    """What a GradScaler multiplies the loss by, and so targets and all gradients: predictions follow it."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def factor(self) -> float | Tensor:
        """A number on the CPU, else a tensor: nobody waits for the device."""
        if torch.compiler.is_compiling():
            raise DniFxError("the scale of a loss changes from step to step, and cannot be compiled into one graph")
        scale = self.scaler._scale
        return self.scaler.get_scale() if scale is None or scale.device.type == "cpu" else scale

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a net is trained by itself, without one."""
        return type(None), ()


class Crossing(nn.Module):
    """One tensor at one cut: runs its synthesizer while training, and watches how good it is."""

    in_time = False
    centered = False  # whether what the synthesizer says is taken less its mean over the batch
    measured: Tensor
    square: Tensor

    def __init__(self, synthesizer: nn.Module, activation: Activation, settings: Settings) -> None:
        super().__init__()
        self.synthesizer = synthesizer
        self.axis = activation.axis
        self.classes = settings.classes
        self.context_size = settings.size
        self.scale = 1.0 if settings.training.scale is None else settings.training.scale
        self.every = settings.training.every
        self.loss_scale: LossScale | None = None
        # A compiler must not put it into one graph with its segment, which goes backward before it.
        self.apart = settings.unlock == "backward"
        self.steps = 0
        device = activation.device
        self.register_buffer("measured", torch.full((len(MEASURES),), math.nan, device=device), persistent=False)
        # Running mean square of what is regressed; 0: nothing yet.
        self.register_buffer("square", torch.zeros((), device=device), persistent=self.scale == "rms")

    # fx.Graph.eliminate_dead_code must not remove a call whose result it believes unused.
    _is_impure = True

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The synthetic gradient, shaped like `activation`; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        return self._apart(activation, context) if self.apart else self._predict(activation, context)

    @torch.compiler.disable(reason=ops.ONE_BY_ONE)  # type: ignore[untyped-decorator]
    def _apart(self, activation: Tensor, context: Tensor | None) -> Tensor:
        return self._predict(activation, context)

    def _predict(self, activation: Tensor, context: Tensor | None) -> Tensor:
        context = self._conditioned(activation, context)
        trains = self._begin()
        with contextlib.nullcontext() if trains else torch.no_grad():
            prediction = self._scaled(self._said(activation, context))
        if prediction.shape != activation.shape:
            raise DniFxError(
                f"synthesizer {type(self.synthesizer).__name__} returned shape {list(prediction.shape)} for an "
                f"activation of shape {list(activation.shape)}"
            )
        if trains and not torch.compiler.is_compiling():
            self._watch(prediction)
        return prediction

    def progress(self) -> dict[str, Any]:
        """Where it is in a run, beside parameters and buffers."""
        carried = getattr(self.synthesizer, "carried", None)
        state = carried.progress() if isinstance(carried, Carried) else None
        return {"steps": self.steps, "carried": state}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on from where `progress` was."""
        self.steps = progress["steps"]
        carried = getattr(self.synthesizer, "carried", None)
        if isinstance(carried, Carried):
            carried.resume(progress["carried"], self.measured.device)

    def reset(self, rows: Tensor | None = None) -> None:
        """New sequences begin, everywhere or in these rows: see `Dni.reset`."""
        reset: Any = getattr(self.synthesizer, "reset", None)
        if reset is not None and rows is None:
            reset()

    def _said(self, activation: Tensor, context: Tensor | None) -> Tensor:
        said: Tensor = self.synthesizer(activation, context)
        own = getattr(self.synthesizer, "own_unit", False)  # wants errors of what is whole
        return centered(said) if self.centered and not own else said

    def _begin(self) -> bool:
        """Count a step; say whether the synthesizer is trained in it."""
        if torch.compiler.is_compiling():
            if self.every > 1 or self.scale == "rms":
                raise DniFxError('every and scale="rms" change from step to step, and cannot be compiled')
            return True
        self.steps += 1
        return (self.steps - 1) % self.every == 0

    def _conditioned(self, activation: Tensor, context: Tensor | None) -> Tensor | None:
        if not self.context_size:
            return None
        if context is None:
            what = "labels" if self.classes is not None else "a context vector a sample"
            raise ContextError(
                f"this model is conditioned on {what}: while training, call net(..., dni_context=...) "
                "(in eval mode and under no_grad it is not needed)"
            )
        if not isinstance(context, Tensor):
            raise ContextError(f"dni_context is a {type(context).__name__}; expected a tensor")
        if isinstance(self.synthesizer, LossHead):
            return check_labels(context, self.classes, self.context_size)
        return expand_context(context, activation, self.axis, classes=self.classes, size=self.context_size)

    def _scaled(self, raw: Tensor) -> Tensor:
        """What it says of each sample's own loss, as the gradient of the mean; the error comes in its own units."""
        batch = ops.batch_size(raw)
        scale: Any = 1.0 if getattr(self.synthesizer, "own_unit", False) else self.scale
        if scale == "rms":
            scale = torch.where(self.square > 0, self.square.rsqrt(), 1.0)
        factor: Any = 1.0
        if self.loss_scale is not None:
            factor, raw = self.loss_scale.factor(), raw.float()  # float16 cannot hold the factor
        # factor * raw / scale, with the slope of half (raw - scale * target)^2
        scaled: Tensor = raw / (batch / scale)
        rest = (factor / scale - scale) / batch
        if isinstance(rest, Tensor):
            return scaled.addcmul_(raw.detach(), rest)
        return scaled.add_(raw.detach(), alpha=rest) if rest else scaled

    def _watch(self, prediction: Tensor) -> None:
        look = (self.steps - 1) % (MEASURE_EVERY * self.every) == 0
        if (look or self.scale == "rms") and prediction.requires_grad:
            factor: Any = 1.0 if self.loss_scale is None else self.loss_scale.factor()
            synthetic = prediction.detach() / factor
            prediction.register_hook(lambda error: self._hear(synthetic, error, look, factor))

    def _hear(self, synthetic: Tensor, error: Tensor | None, look: bool, factor: Any) -> None:
        """`error` is the batch size times synthetic - target, scaled, which the boundary sends back; None: dropped."""
        if error is None:
            return
        error = error / (ops.batch_size(synthetic) * factor)
        target = synthetic - error
        if self.scale == "rms":  # the unit of what is regressed follows the targets
            now = (target.float() * ops.batch_size(synthetic)).square().mean().to(self.square)
            self.square = torch.where(self.square > 0, self.square.lerp(now, 0.01), now)
        if look:
            target = (centered(target) if self.centered else target).flatten().float()
            synthetic = synthetic.flatten().float()
            error = synthetic - target
            norms = target.dot(target).sqrt(), synthetic.dot(synthetic).sqrt()  # on a CPU faster than norm()
            cosine = target.dot(synthetic) / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
            self.measured = torch.stack([cosine, error.dot(error).sqrt() / norms[0], *norms]).detach()
