"""One tensor that crosses a cut: its synthesizer, its targets, its metrics."""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from dni_fx import ops
from dni_fx.errors import ContextError, DniFxError
from dni_fx.settings import Settings
from dni_fx.synthesizers import (
    Activation,
    Carried,
    ExitGradient,
    GuidedHead,
    LossScale,
    Synthesizer,
    centered,
    check_labels,
    expand_context,
)

__all__ = ["MEASURES", "Crossing"]

# Steps between two measurements of targets; one costs a few passes over the tensor. A prime, so that inputs that come
# in turns, such as the windows of a sequence, are all measured.
MEASURE_EVERY = 19

MEASURES = ("cosine", "relative_error", "target_norm", "prediction_norm")


def _takes_nothing(function: object) -> TypeGuard[Callable[[], object]]:
    """Whether a function can be called without arguments: a module of the user's may have another kind of `reset`."""
    try:
        inspect.signature(cast(Any, function)).bind()
    except (TypeError, ValueError):
        return False
    return True


class Crossing(nn.Module):
    """One tensor at one cut: runs its synthesizer while training, and measures the predictions.

    A synthesizer that is a plain `nn.Module`, and no `Synthesizer`, has the defaults of one. No module is wrapped
    around it, since that would change the names of its parameters in a state_dict.

    Args:
        layout: Where the samples are in the tensor; None: it is batch first. The synthesizer gets it batch first.
    """

    in_time = False
    learns = True  # False: predictions are only used; their targets come later, to predictions that are made again
    centered = False  # whether predictions are taken less their mean over the batch
    layout = ops.Layout()  # also in a net that an older version pickled
    measured: Tensor
    square: Tensor

    def __init__(
        self, synthesizer: nn.Module, activation: Activation, settings: Settings, layout: ops.Layout | None = None
    ) -> None:
        super().__init__()
        self.synthesizer = synthesizer
        self.layout = layout or ops.Layout()
        self.axis = activation.axis
        self.classes = settings.classes
        self.context_size = settings.size
        self.scale = 1.0 if settings.training.scale is None else settings.training.scale
        self.every = settings.training.every
        self.loss_scale: LossScale | None = None
        # torch.compile must not put the synthesizer into one graph with its segment, which goes backward before.
        self.apart = settings.unlock == "backward"
        self.steps = 0
        device = activation.device
        self.register_buffer("measured", torch.full((len(MEASURES),), math.nan, device=device), persistent=False)
        # Running mean square of the targets; 0: no target yet.
        self.register_buffer("square", torch.zeros((), device=device), persistent=self.scale == "rms")

    # fx.Graph.eliminate_dead_code must not remove a call whose result it believes unused.
    _is_impure = True

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The synthetic gradient, shaped like `activation`; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        ops.check_not_traced(activation, allows_export=not self.apart)
        return self._predict_uncompiled(activation, context) if self.apart else self._predict(activation, context)

    @torch.compiler.disable(reason=ops.ONE_BY_ONE)  # type: ignore[untyped-decorator]
    def _predict_uncompiled(self, activation: Tensor, context: Tensor | None) -> Tensor:
        return self._predict(activation, context)

    def _predict(self, tensor: Tensor, context: Tensor | None) -> Tensor:
        activation = self.layout.batch_first(tensor)
        context = self._conditioned(tensor, activation, context)
        trains = self.learns and self._count_step()
        with contextlib.nullcontext() if trains else torch.no_grad():
            prediction = self._scaled(self._raw_prediction(activation, context))
        if prediction.shape != activation.shape:
            raise DniFxError(
                f"synthesizer {type(self.synthesizer).__name__} returned shape {list(prediction.shape)} for an "
                f"activation of shape {list(activation.shape)}"
            )
        if trains and not torch.compiler.is_compiling():
            self._measure_in_backward(prediction)
        return self.layout.restored(prediction, tensor)

    def progress(self) -> dict[str, Any]:
        """The part of a checkpoint beside parameters and buffers."""
        carried = self._carried
        return {"steps": self.steps, "carried": None if carried is None else carried.progress()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Continue from `progress`."""
        self.steps = progress["steps"]
        if self._carried is not None:
            self._carried.resume(progress["carried"], self.measured.device)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.every > 1:  # else a state_dict has the keys of older versions
            destination[f"{prefix}steps"] = torch.tensor(self.steps)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.steps = int(state_dict.pop(f"{prefix}steps", self.steps))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def reset(self, rows: Tensor | None = None) -> None:
        """Begin new sequences, everywhere or in these rows: see `Dni.reset`."""
        reset = getattr(self.synthesizer, "reset", None)
        if rows is None and _takes_nothing(reset):
            reset()

    def scale_with(self, loss_scale: LossScale | None) -> None:
        """Let predictions follow the scale of the loss; None: the loss is not scaled."""
        self.loss_scale = loss_scale
        if isinstance(self.synthesizer, Synthesizer):
            self.synthesizer.configure(loss_scale=loss_scale, centered=self.centered)

    @property
    def own_segment(self) -> ops.Segment | None:
        """The segment that belongs to this crossing alone; None: the segment below the cut."""
        return None

    @property
    def _own_unit(self) -> bool:
        return isinstance(self.synthesizer, Synthesizer) and self.synthesizer.own_unit

    @property
    def _carried(self) -> Carried | None:
        return self.synthesizer.carried if isinstance(self.synthesizer, Synthesizer) else None

    def _raw_prediction(self, activation: Tensor, context: Tensor | None) -> Tensor:
        """The prediction for each sample's own loss, centered where that is asked for."""
        prediction: Tensor = self.synthesizer(activation, context)
        return centered(prediction) if self.centered and not self._own_unit else prediction

    def _count_step(self) -> bool:
        """Count a step; return whether the synthesizer is trained in this step."""
        if torch.compiler.is_compiling():
            if self.every > 1 or self.scale == "rms":
                raise DniFxError('every and scale="rms" change from step to step, and cannot be compiled')
            return True
        self.steps += 1
        return (self.steps - 1) % self.every == 0

    def _conditioned(self, tensor: Tensor, activation: Tensor, context: Tensor | None) -> Tensor | None:
        if isinstance(self.synthesizer, ExitGradient):
            return None if context is None else self.layout.batch_first(context)
        if not self.context_size:
            return None
        if context is None:
            kind = "labels" if self.classes is not None else "a context vector a sample"
            raise ContextError(
                f"this model is conditioned on {kind}: while training, call net(..., dni_context=...) "
                "(in eval mode and under no_grad it is not needed)"
            )
        if not isinstance(context, Tensor):
            raise ContextError(f"dni_context is a {type(context).__name__}; expected a tensor")
        if self.layout.axis(tensor) is None and not _is_number(context):
            context = context.unsqueeze(0)  # of the one sample
        if self.layout.rows != 1 and context.dim() and len(context) != len(activation):
            raise ContextError(
                f"dni_context has {len(context)} rows, but the tensor at the cut has {len(activation)}, which are not "
                "one a sample: give a row for each of them, in their order, or cut elsewhere"
            )
        if isinstance(self.synthesizer, GuidedHead):
            return check_labels(context, self.classes, self.context_size)
        return expand_context(context, activation, self.axis, classes=self.classes, size=self.context_size)

    def _samples(self, prediction: Tensor) -> int:
        """The number of samples in a prediction, which is batch first."""
        return ops.batch_size(prediction, rows=self.layout.rows)

    def _scaled(self, raw: Tensor) -> Tensor:
        """Make a gradient of the mean loss from one of each sample's own loss; in backward, keep the unit of errors."""
        batch = self._samples(raw)
        scale: Any = 1.0 if self._own_unit else self.scale
        if scale == "rms":
            scale = torch.where(self.square > 0, self.square.rsqrt(), 1.0)
        factor: Any = 1.0
        if self.loss_scale is not None:
            factor = self.loss_scale.factor()
            raw = raw.float() if raw.dtype.itemsize < 4 else raw  # float16 cannot hold the factor
        # factor * raw / scale, with the slope of half (raw - scale * target)^2
        scaled: Tensor = raw / (batch / scale)
        rest = (factor / scale - scale) / batch
        if isinstance(rest, Tensor):
            return scaled.addcmul_(raw.detach(), rest)
        return scaled.add_(raw.detach(), alpha=rest) if rest else scaled

    def _measure_in_backward(self, prediction: Tensor) -> None:
        measures = (self.steps - 1) % (MEASURE_EVERY * self.every) == 0
        if (measures or self.scale == "rms") and prediction.requires_grad:
            factor: Any = 1.0 if self.loss_scale is None else self.loss_scale.factor()
            unscaled = prediction.detach() / factor
            prediction.register_hook(lambda error: self._pre_backward(unscaled, error, measures, factor))

    def _pre_backward(self, prediction: Tensor, error: Tensor | None, measures: bool, factor: Any) -> None:
        """Measure a prediction, and follow the scale of targets, before the backward pass of the synthesizer.

        Args:
            error: batch size * (prediction - target) * factor; None: not finite. That of an empty batch says nothing.
        """
        if error is None or not error.numel():
            return
        error = error / (self._samples(prediction) * factor)
        target = prediction - error
        if self.scale == "rms":
            now = (target.float() * self._samples(prediction)).square().mean().to(self.square)
            self.square = torch.where(self.square > 0, self.square.lerp(now, 0.01), now)
        if measures:
            target = (centered(target) if self.centered else target).flatten().float()
            prediction = prediction.flatten().float()
            error = prediction - target
            norms = target.dot(target).sqrt(), prediction.dot(prediction).sqrt()  # on a CPU faster than norm()
            cosine = target.dot(prediction) / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
            self.measured = torch.stack([cosine, error.dot(error).sqrt() / norms[0], *norms]).detach()


def _is_number(context: object) -> bool:
    """Whether a context is one number for all samples, such as the loss of the last step; a label is an integer."""
    return not isinstance(context, Tensor) or (context.dim() == 0 and context.is_floating_point())
