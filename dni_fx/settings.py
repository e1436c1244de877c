"""Settings: how a model is rewritten at its cuts, and how the synthesizers are trained."""

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError, described, first_line

__all__ = [
    "DEFAULTS",
    "Loss",
    "Mix",
    "Settings",
    "Training",
    "check_horizon",
    "check_loss",
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
    (`benchmarks/results/synthesizer_training.md`), but nothing is unlocked until its end. A `guided_head` has no use
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

    @property
    def needs_optimizer(self) -> bool:
        """Whether the synthesizers have a learning rate or an optimizer of their own, beside that of the model."""
        return self.optimizer is not None or self.lr is not None

    def __post_init__(self) -> None:
        check_arguments(vars(self), "Training")
        if self.horizon == 1 and self.trace != 1.0:
            raise DniFxError("trace is for a horizon of more than one window")
        if self.auxiliary:
            check_horizon(self, "auxiliary")


@dataclass(frozen=True)
class Settings:
    """How the cuts are rewritten, as in `dni_fx.transform`."""

    unlock: str = "backward"
    mix: Mix = 0.0
    classes: int | None = None
    context_size: int | None = None
    loss: str | Loss | None = None
    training: Training = field(default_factory=Training)
    context_from: str | None = None

    @property
    def size(self) -> int:
        """Entries of the context of the synthesizers; 0: no context."""
        return self.classes or self.context_size or 0

    def __post_init__(self) -> None:
        check_arguments(vars(self))
        if self.mix and self.unlock != "none":
            raise DniFxError(
                f"mix={self.mix} needs unlock='none': with unlock={self.unlock!r} the true gradient comes too late"
            )
        if self.classes is not None and self.context_size is not None:
            raise DniFxError("classes= and context_size= exclude each other: labels are the context")
        if self.loss is not None:
            loss_function(self.loss)
        if self.context_from is not None and not (self.size or self.loss is not None):
            raise DniFxError(
                f"context_from={self.context_from!r} is for synthesizers that take labels or a target: give classes= "
                "or loss="
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
    check_arguments({"scaler": scaler})
    if training.optimizer is not None and step == "loop":
        raise DniFxError(
            "an optimizer of the synthesizers' own would step on scaled gradients: leave training.optimizer or scaler "
            'out, or use step="segment"'
        )
    if training.clip is not None:
        raise DniFxError("clip takes targets as they are, but a scaler multiplies them: leave one of the two out")
    check_horizon(training, "scaler")


def check_horizon(training: Training, feature: str) -> None:
    """Raise a DniFxError if there is a horizon, for a feature in `_NOT_WITH_A_HORIZON`."""
    reason = _NOT_WITH_A_HORIZON[feature]
    if training.horizon > 1:
        raise DniFxError(f"a horizon (here {training.horizon} windows) cannot be used with {feature}: {reason}")


def loss_function(loss: str | Loss) -> Loss:
    """The loss as a function, from a function or the name of one in `torch.nn.functional`.

    Raises:
        DniFxError: If `loss` is neither.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in _named_losses():
        near = difflib.get_close_matches(loss, _named_losses(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DniFxError(
            f"loss={described(loss)}: torch.nn.functional has no such function that is a loss; there are "
            f"{', '.join(_named_losses())}{hint}"
        )
    return _named_losses()[loss]


@functools.cache
def _named_losses() -> dict[str, Loss]:
    """The losses of `torch.nn.functional` that need outputs and targets alone: losses have the argument `reduction`."""
    found: dict[str, Loss] = {}
    for name, function in vars(nn.functional).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        needed = [n for n, p in parameters.items() if p.default is p.empty]
        if "reduction" in parameters and len(needed) == 2 and needed[0] == "input":
            found[name] = function
    return dict(sorted(found.items()))


def check_loss(settings: Settings, device: torch.device | str = "cpu") -> None:
    """Run the loss on rows of outputs and targets of the context's size.

    Raises:
        DniFxError: If the loss does not run, or does not return a scalar with gradient.
    """
    if settings.loss is None or not settings.size:
        return
    size = settings.size
    rows = 5 if size != 5 else 7  # a number of rows unlike the size: a loss that mixes the two axes up fails
    with_labels = settings.classes is not None
    target = torch.zeros(rows, *([] if with_labels else [size]), device=device)
    reason = _why_no_loss(loss_function(settings.loss), rows, size, target.long() if with_labels else target)
    if reason:
        kind = "integer labels" if with_labels else "rows of floats"
        hint = "; for targets of floats, give context_size= in place of classes=" if with_labels else ""
        raise DniFxError(
            f"loss={described(settings.loss)} {reason}, for outputs {[rows, size]} and {kind} {list(target.shape)}; a "
            f"loss returns the mean over the rows, a scalar with gradient{hint}"
        )


def _why_no_loss(loss: Loss, rows: int, size: int, target: Tensor) -> str:
    """The reason why a function is no loss for targets like this; empty if it is one."""
    outputs = torch.zeros(rows, size, device=target.device, requires_grad=True)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            value: object = loss(outputs, target)
    except Exception as error:  # the user's function may raise any error
        return f"raises {type(error).__name__} ({first_line(error)})"
    if not isinstance(value, Tensor) or value.numel() != 1:
        return f"returns {described(value)}"
    return "" if value.requires_grad else "returns a scalar without gradient"


def loss_name(loss: str | Loss | None) -> str | None:
    """The name of a loss in a plan; empty for a function of the user's own."""
    if loss is None or isinstance(loss, str):
        return loss
    name = getattr(loss, "__name__", "")
    return name if getattr(nn.functional, name or "-", None) is loss else ""


DEFAULTS = Settings()
