"""The plan: where to cut a model, why, and how. Plain data: people can save, read and apply a plan again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dni_fx.cut_plans import CrossingTensor, Cut, ExitPlan, StateTensor, TimeCutPlan, UnitPlan, run_twice
from dni_fx.errors import DniFxError, first_line
from dni_fx.forecasts import Forecast, Outlook, Verdict, Weighed
from dni_fx.json_data import read
from dni_fx.paths import as_path
from dni_fx.settings import Mix, Settings, Training, loss_name

__all__ = [
    "CrossingTensor",
    "Cut",
    "ExitPlan",
    "Forecast",
    "Outlook",
    "Plan",
    "Rewrite",
    "SegmentPlan",
    "StateTensor",
    "TimeCutPlan",
    "UnitPlan",
    "Verdict",
    "Weighed",
    "crossing_name",
    "crossings",
    "exit_name",
    "run_twice",
    "time_name",
]

SCHEMA = 1

_BESIDE = ("schema", "digests")  # entries of a file that are not of the plan


@dataclass(frozen=True)
class SegmentPlan:
    """One segment, in the order of the graph, with its costs for the example inputs.

    Attributes:
        nodes: Names of the nodes of the graph.
        parameters: The number of entries of the trainable parameters that are first used here.
        flops: Operations of a forward pass.
        activation_bytes: The bytes that autograd keeps for the backward pass of the segment.
        forward: The predicted time of a forward pass, as all times in the unit of the plan's forecast.
        backward: The predicted time of a backward pass, with what it computes again.
        synthesizers: The predicted time of the synthesizers at its upper end.
        load: The predicted time of a step on a device that has only this segment.
        peak_bytes: The most bytes alive while the segment runs, of those that the step allocates.
        peak_at: The node at the peak.
        peak_backward: Whether the peak is in the backward pass.
        recomputed: The first and last node of each piece whose activations the backward pass computes again.
    """

    nodes: tuple[str, ...]
    parameters: int
    flops: int
    activation_bytes: int
    forward: float = 0.0
    backward: float = 0.0
    synthesizers: float = 0.0
    load: float = 0.0
    peak_bytes: int = 0
    peak_at: str = ""
    peak_backward: bool = True
    recomputed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """How to rewrite the cuts.

    Attributes:
        unlock: "none" or "backward".
        mix: The share of the true gradient.
        classes: The number of classes of labels.
        context_size: The entries of a context.
        synthesizers: The names of synthesizers by crossing, as in `net.code`.
        loss: A name in torch.nn.functional; empty: any other function.
        training: How the synthesizers are trained, without their optimizer.
        named: The synthesizers were chosen by name, which sets defaults of their training.
        paths: "module:name" of each synthesizer that dni-fx does not have.
        context_from: Where the context of a call without `dni_context` is, "argument" or "argument.key"; None: nowhere.
    """

    unlock: str
    mix: Mix
    classes: int | None
    context_size: int | None
    synthesizers: dict[str, str]
    loss: str | None = None
    training: Training = field(default_factory=Training)
    named: bool = True
    paths: dict[str, str] = field(default_factory=dict)
    context_from: str | None = None

    @classmethod
    def of(
        cls, settings: Settings, synthesizers: dict[str, str], named: bool = True, paths: dict[str, str] | None = None
    ) -> "Rewrite":
        """Make the plain data of settings, and of the names of synthesizers."""
        training = replace(settings.training, optimizer=None)
        context = settings.classes, settings.context_size
        loss, source = loss_name(settings.loss), settings.context_from
        return cls(settings.unlock, settings.mix, *context, synthesizers, loss, training, named, paths or {}, source)

    @property
    def size(self) -> int:
        """Entries of the context of the synthesizers; 0: no context."""
        return self.classes or self.context_size or 0

    @property
    def settings(self) -> Settings:
        """The settings again.

        Raises:
            DniFxError: If the loss has no name.
        """
        if self.loss == "":
            raise DniFxError("the loss of the synthesizers is a function of your own, which a plan cannot name")
        context = self.classes, self.context_size
        return Settings(self.unlock, self.mix, *context, self.loss, self.training, self.context_from)


@dataclass(frozen=True, repr=False)
class Plan:
    """The decision: cuts, segments, their costs, the reason; and for a rewritten model, how it was rewritten.

    Attributes:
        model: The name of the model's class.
        fingerprint: A hash of the captured graph, the same for every batch size.
        inputs: The example inputs: the name, shape and dtype of each.
        inputs_from: The source of the example inputs.
        cuts: The cuts in depth, from below.
        segments: The segments, from below: one more than cuts.
        why: The reason for these cuts.
        frontend: The front end that captured the model.
        tried: The front ends that could not capture the model, each with the reason.
        tied: The numbers of the segments that use a parameter, for each parameter that several segments use.
        rewrite: How the model was rewritten; None: the plan is only a decision.
        forecast: The predicted memory and time; None: an older version made the plan.
        verdict: Why these cuts won; None: the user chose the cuts.
        states: The cuts in time.
        for_maps: The synthesizer of maps, where the user names none and there is no exit.
    """

    model: str
    fingerprint: str
    inputs: tuple[str, ...]
    inputs_from: str
    cuts: tuple[Cut, ...]
    segments: tuple[SegmentPlan, ...]
    why: str
    frontend: str = "fx"
    tried: tuple[str, ...] = ()
    tied: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rewrite: Rewrite | None = None
    forecast: Forecast | None = None
    verdict: Verdict | None = None
    states: tuple[TimeCutPlan, ...] = ()
    for_maps: str = "conv"

    def __repr__(self) -> str:
        """One line, however large the model is."""
        names = [cut.after for cut in self.cuts]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts = [f"{len(self.segments)} segment{'s' * bool(names)}", *([f"cut after {shown}"] if names else [])]
        parts += ["with exits"] if any(cut.exit is not None for cut in self.cuts) else []
        parts += [f"{len(self.states)} cuts in time"] if self.states else []
        parts += [f"front end {self.frontend}", *([f"unlock {self.rewrite.unlock}"] if self.rewrite else [])]
        return f"Plan({self.model}: {', '.join(parts)})"

    @property
    def takes_context(self) -> bool:
        """Whether the rewritten net takes the argument `dni_context`: labels, a vector, or the target of a loss."""
        rewrite = self.rewrite
        if rewrite is None:
            return False
        has_target = any(cut.exit is not None and not cut.exit.loss for cut in self.cuts)
        unused = rewrite.loss is not None and not self.cuts and not self.states  # the loop that is right for exits runs
        return bool(rewrite.classes or rewrite.context_size or has_target or unused)

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "plan") -> "Plan":
        """Read a text that `to_json` wrote.

        Raises:
            DniFxError: If the text is not a plan.
        """
        try:
            data = json.loads(text, parse_constant=_constant)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise ValueError(f'expected a plan with "schema": {SCHEMA}')
            return read(cls, {k: v for k, v in data.items() if k not in _BESIDE})
        except (ValueError, RecursionError, DniFxError) as error:
            raise DniFxError(f"{source} is not a plan that dni-fx wrote: {first_line(error)}") from None

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan from a file, or from the folder that `dni_fx.save` or `dni-fx rewrite` wrote."""
        path = as_path(path)
        path = path / "plan.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DniFxError(f"cannot read the plan {path}: {error}") from None
        return cls.from_json(text, source=str(path))


def _constant(name: str) -> float:
    """A constant of JSON as Python writes it; NaN is no value of a plan."""
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def exit_name(cut: int) -> str:
    """The name under `net.dni` of the exit at one cut."""
    return f"exit{cut}"


def crossing_name(cut: int, node: str) -> str:
    """The name under `net.dni` of the crossing of one tensor at one cut."""
    return f"cut{cut}_{node}"


def time_name(index: int) -> str:
    """The name under `net.dni` of the crossing of a state, at a cut in time."""
    return f"time{index}"


def crossings(plan: Plan) -> Iterator[tuple[str, CrossingTensor | TimeCutPlan]]:
    """Every crossing of a plan by its name under `net.dni`: each needs one synthesizer."""
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.predicted:
            yield crossing_name(index, tensor.node), tensor
    for index, state in enumerate(plan.states):
        yield time_name(index), state
