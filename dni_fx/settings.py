"""Settings: how a model is rewritten at its cuts, and how the synthesizers are trained."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.errors import DniFxError

__all__ = [
    "DEFAULTS",
    "Loss",
    "Mix",
    "Settings",
    "Training",
    "check_accumulate",
    "check_horizon",
    "check_scaler",
    "loss_function",
    "loss_name",
    "with_defaults",
]

Loss = Callable[[Tensor, Tensor], Tensor]

Mix = float | tuple[float, float, int]


# Fields of `Training` that a cut in time alone has a use for.
_FOR_TIME = ("discount", "centered", "auxiliary", "horizon", "trace")

# Features that cannot be used with a horizon, which runs every window a second time: the reason, and what to do.
_NOT_WITH_A_HORIZON = {
    "auxiliary": "the auxiliary loss is not part of the second run: set auxiliary=0 or horizon=1",
    "compile": "the second run is not compiled: leave compile out, or set horizon=1",
    "scaler": "its gradients were scaled by an earlier factor: leave scaler out, or set horizon=1",
    "DistributedDataParallel": "it would not see the second run: set horizon=1, or train in one process",
}


@dataclass(frozen=True)
class Training:
    """How the synthesizers are trained.

    The defaults did well on every net in `benchmarks/`; a warm-up often does a little better
    (`benchmarks/results/synthesizer_training.md`), but nothing is unlocked until its end. Heads and critics have no use
    for `scale`, and `least_squares` none for `scale` and `lr`. Fields from `discount` on are for a cut in time.
    """

    scale: float | str | None = None
    """The factor of targets: a number, or "rms", one over their running root mean square.

    A target is the gradient of each sample's own loss: dL/dh times the batch size. With scale 1 one learning rate suits
    every batch size; the smaller the scale, the faster predictions change. None: 1/16 for synthesizers chosen by name
    without labels or context, at cuts in depth; else 1. In time "rms" is 1: targets are made of predictions there,
    which would set their own unit.
    """

    clip: float | None = None
    """The largest norm of one sample's target; None: no limit."""

    warmup: int = 0
    """The number of first steps with true gradients, which the synthesizers learn to predict; they save no memory."""

    every: int = 1
    """Steps from one training step of the synthesizers to the next; in between they only predict."""

    lr: float | None = None
    """The synthesizers' learning rate, as a multiple of the rate of the optimizer that they are added to.

    None: 1, and a tenth for a cut in time.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    """Makes an optimizer of their own from the synthesizers' parameters; it steps when the user's optimizer does.

    With step="loop" it is `net.dni.optimizer`: a scheduler of the user's optimizer does not change its rate.
    """

    discount: float = 1.0
    """The factor of the predicted gradient at the end of a window, 0 to 1.

    The smaller the discount, the fewer later windows count, and the less do errors of predictions return in targets.
    """

    centered: bool | None = None
    """Whether the mean over the batch (of one process) is subtracted from predictions, for more than one sample.

    The part that all samples have in common changes with every step of the net; a remembered one comes too late, and
    the net swings: `benchmarks/results/time_cut.md`. None: for synthesizers chosen by name.
    """

    auxiliary: float = 0.0
    """The weight of an auxiliary loss: a window's first state learns to predict the synthetic gradient at its end."""

    horizon: int = 1
    """The number of windows, at most, that a target reaches over before a prediction takes its place.

    More than 1 runs every window twice, and excludes compile, scaler, DistributedDataParallel and auxiliary. See
    `dni_fx.runtime.time_horizon`.
    """

    trace: float = 1.0
    """With a horizon, the lambda of BP(lambda): the share of the true gradient between its windows."""

    @property
    def for_time(self) -> bool:
        """Whether a field has been set that a cut in time alone has a use for."""
        return any(getattr(self, name) != getattr(Training, name) for name in _FOR_TIME)

    def __post_init__(self) -> None:
        if self.scale not in (None, "rms") and not _positive(self.scale):
            raise DniFxError(f'scale={self.scale!r}: a positive number, "rms", or None')
        if self.clip is not None and not _positive(self.clip):
            raise DniFxError(f"clip={self.clip!r}: the largest norm of a target is a positive number, or None")
        if not _whole(self.warmup) or self.warmup < 0:
            raise DniFxError(f"warmup={self.warmup!r}: a number of steps, 0 or more")
        if not _whole(self.every) or self.every < 1:
            raise DniFxError(f"every={self.every!r}: a number of steps, 1 or more")
        if self.lr is not None and not _positive(self.lr):
            raise DniFxError(f"lr={self.lr!r}: the multiple of the learning rate is a positive number")
        if self.auxiliary != 0 and not _positive(self.auxiliary):
            raise DniFxError(f"auxiliary={self.auxiliary!r}: the weight of a loss is 0 or more")
        for name in ("discount", "trace"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
                raise DniFxError(f"{name}={share!r}: a share, 0 to 1")
        if self.centered is not None and not isinstance(self.centered, bool):
            raise DniFxError(f"centered={self.centered!r}: True, False or None")
        if not _whole(self.horizon) or self.horizon < 1:
            raise DniFxError(f"horizon={self.horizon!r}: a number of windows, 1 or more")
        if self.horizon == 1 and self.trace != 1.0:
            raise DniFxError("trace is for a horizon of more than one window")
        if self.auxiliary:
            check_horizon(self, "auxiliary")
        if self.optimizer is not None and not callable(self.optimizer):
            raise DniFxError("optimizer: a function from parameters to an optimizer, such as torch.optim.Adam")


@dataclass(frozen=True)
class Settings:
    """How the cuts are rewritten, as in `dni_fx.transform`."""

    unlock: str = "backward"
    mix: Mix = 0.0
    classes: int | None = None
    context_size: int | None = None
    loss: str | Loss | None = None
    training: Training = field(default_factory=Training)

    @property
    def size(self) -> int:
        """Entries of the context of the synthesizers; 0: no context."""
        return self.classes or self.context_size or 0

    def __post_init__(self) -> None:
        unlock, mix = self.unlock, self.mix
        if unlock not in ("none", "backward"):
            raise DniFxError(f"unlock={unlock!r}: there are 'none' and 'backward'")
        _check_mix(mix)
        if mix and unlock != "none":
            raise DniFxError(f"mix={mix} needs unlock='none': with unlock={unlock!r} the true gradient comes too late")
        classes, context_size = self.classes, self.context_size
        if classes is not None and context_size is not None:
            raise DniFxError("classes and context_size exclude each other: labels are the context")
        for size in (classes, context_size):
            if size is not None and not _whole(size):
                raise DniFxError(f"classes and context_size are whole numbers, not {size!r}")
        if (classes is not None and classes < 2) or (context_size is not None and context_size < 1):
            raise DniFxError("classes must be 2 or more, context_size 1 or more")
        if not isinstance(self.training, Training):
            raise DniFxError(f"training={self.training!r}: a dni_fx.Training")
        if self.loss is not None:
            loss_function(self.loss)
            if not self.size:
                raise DniFxError(
                    "loss needs classes (or context_size): it compares outputs with the argument dni_context of the net"
                )


def with_defaults(settings: Settings, *, named: bool, in_time: bool = False) -> Settings:
    """Set the scale, and in time the centering, to suit the synthesizer, where these are None.

    A synthesizer of the user's own, which has no name, gets unscaled targets. The best scale without labels is measured
    in `benchmarks/synthesizer_training.py` and `synthesizers_by_net.py`; for a cut in time, in `time_cut.py`.
    """
    scale, centered = settings.training.scale, settings.training.centered
    if scale is None:
        scale = 1 / 16 if named and not settings.size and not in_time else 1.0
    if in_time:
        scale = 1.0 if scale == "rms" else scale
        centered = named if centered is None else centered
    return replace(settings, training=replace(settings.training, scale=scale, centered=centered))


def check_scaler(scaler: object, training: Training, step: str = "segment") -> None:
    """Raise a DniFxError if the loss may not be scaled by this scaler."""
    if not isinstance(scaler, torch.amp.GradScaler):
        raise DniFxError(f"scaler={scaler!r}: a torch.amp.GradScaler")
    if training.optimizer is not None and step == "loop":
        raise DniFxError(
            "an optimizer of the synthesizers' own would step on scaled gradients: leave training.optimizer or scaler "
            'out, or use step="segment"'
        )
    if training.clip is not None:
        raise DniFxError("clip takes targets as they are, but a scaler multiplies them: leave one of the two out")
    check_horizon(training, "scaler")


def check_accumulate(accumulate: object) -> None:
    """Raise a DniFxError if this is neither None nor a number of batches."""
    if accumulate is not None and (not _whole(accumulate) or accumulate < 1):  # type: ignore[operator]
        raise DniFxError(f"accumulate={accumulate!r}: the number of batches whose gradients are accumulated, 1 or more")


def check_horizon(training: Training, feature: str) -> None:
    """Raise a DniFxError if there is a horizon, for a feature in `_NOT_WITH_A_HORIZON`."""
    reason = _NOT_WITH_A_HORIZON[feature]
    if training.horizon > 1:
        raise DniFxError(f"a horizon (here {training.horizon} windows) cannot be used with {feature}: {reason}")


def _check_mix(mix: Mix) -> None:
    shares = mix[:2] if isinstance(mix, tuple) else (mix,)
    if isinstance(mix, tuple) and (len(mix) != 3 or not _whole(mix[2]) or mix[2] < 1):
        raise DniFxError(f"mix={mix}: a schedule is (start, end, steps)")
    if not all(isinstance(share, int | float) and 0.0 <= share <= 1.0 for share in shares):
        raise DniFxError(f"mix={mix}: the share of the true gradient lies between 0 and 1")


def loss_function(loss: str | Loss) -> Loss:
    """The loss as a function, from a function or the name of one in `torch.nn.functional`.

    Raises:
        DniFxError: If `loss` is neither.
    """
    if not isinstance(loss, str):
        if not callable(loss):
            raise DniFxError(f"loss={loss!r}: a function of (output, labels), or a name such as 'cross_entropy'")
        return loss
    function: Any = getattr(nn.functional, loss, None)
    if not callable(function):
        raise DniFxError(f"loss={loss!r}: torch.nn.functional has no such function; 'cross_entropy' is one")
    found: Loss = function
    return found


def loss_name(loss: str | Loss | None) -> str | None:
    """The name of a loss in a plan; empty for a function of the user's own."""
    if loss is None or isinstance(loss, str):
        return loss
    name = getattr(loss, "__name__", "")
    return name if getattr(nn.functional, name or "-", None) is loss else ""


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


DEFAULTS = Settings()
