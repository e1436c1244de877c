"""The plan: where to cut a model, why, and how. Plain data: people can save, read and apply a plan again."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dni_fx.errors import DniFxError
from dni_fx.paths import as_path
from dni_fx.settings import Mix, Settings, Training, loss_name

__all__ = [
    "CrossingTensor",
    "Cut",
    "Forecast",
    "Outlook",
    "Plan",
    "Rewrite",
    "SegmentPlan",
    "StateTensor",
    "TimeCutPlan",
    "Verdict",
    "Weighed",
    "crossing_name",
    "crossings",
    "time_name",
]

SCHEMA = 1


@dataclass(frozen=True)
class CrossingTensor:
    """A tensor that crosses a cut."""

    node: str  # the node of the graph that computes the tensor
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    axis: int  # the feature axis


@dataclass(frozen=True)
class Cut:
    """A boundary between two consecutive segments: the tensors that cross it."""

    after: str  # the last node of the segment below
    tensors: tuple[CrossingTensor, ...]


@dataclass(frozen=True)
class StateTensor:
    """A tensor that goes from one call of a recurrent model to the next."""

    input: str  # the placeholder that takes the tensor; without a graph, the argument
    path: tuple[int | str, ...]  # the path in this input, if the input is a tuple or dict of tensors
    result: tuple[int | str, ...]  # the path of the next state in the result of the model
    output: int  # the index of the next state among the output nodes of the graph
    shape: tuple[int, ...]
    dtype: str
    axis: int  # the batch axis

    @property
    def features(self) -> int:
        """Entries of one row."""
        return math.prod(self.shape) // self.shape[self.axis]


@dataclass(frozen=True)
class TimeCutPlan:
    """A cut in time: the tensors of the state that the same segments use and compute. They share a synthesizer."""

    tensors: tuple[StateTensor, ...]
    enters: tuple[int, ...] = (0,)  # segments that use the state
    leaves: int = 0  # the segment that computes the next state


@dataclass(frozen=True)
class SegmentPlan:
    """One segment, in the order of the graph, with its costs for the example inputs."""

    nodes: tuple[str, ...]
    parameters: int  # entries of the trainable parameters first used here
    flops: int  # forward
    activation_bytes: int  # that autograd keeps for the backward pass of the segment
    # Predictions; times in the unit of the plan's forecast:
    forward: float = 0.0
    backward: float = 0.0
    synthesizers: float = 0.0  # time of the synthesizers at its upper end
    load: float = 0.0  # time of a step on a device that has only this segment
    peak_bytes: int = 0  # the most bytes alive while the segment runs, of those that the step allocates
    peak_at: str = ""  # the node at the peak
    peak_backward: bool = True  # the peak is in the backward pass


@dataclass(frozen=True)
class Outlook:
    """The predicted memory and time of a training step."""

    peak_bytes: int  # with parameters, optimizer state and batch
    step: float  # time on one device
    slowest: float  # time if every segment has a device of its own, and no segment waits for another


@dataclass(frozen=True)
class Forecast:
    """The predictions for a plan and for backprop, with `unlock="backward"` and Adam."""

    unit: str  # of times: "FLOPs" or "s"
    resident_bytes: int  # parameters, buffers, optimizer state and the batch: older than the step
    synthesizer_bytes: int  # parameters of the synthesizers and their optimizer state
    optimizer_bytes: int  # allocated by the step, and alive while the optimizer steps: all gradients, and temporaries
    backprop: Outlook
    cut: Outlook


@dataclass(frozen=True)
class Weighed:
    """A candidate in the search for cuts."""

    after: tuple[str, ...]  # the last node below each cut
    synthesizers: int
    value: float
    charges: float
    share: float  # the time of its synthesizers, as a share of backprop's step
    outlook: Outlook


@dataclass(frozen=True)
class Verdict:
    """Why an automatic plan won: its value is at most `value - bound` above the least possible value.

    The value is the load of the heaviest segment (bytes for the objective memory, else time), the static bytes of the
    synthesizers (memory only), and a charge for each synthesizer.
    """

    objective: str
    places: int  # number of legal positions of a cut
    bound: float
    share: float  # the limit for the time of all synthesizers, as a share of backprop's step
    weighed: tuple[Weighed, ...]  # this plan and the runners-up, best first

    @property
    def optimal(self) -> bool:
        """Whether no plan has a lower value."""
        return self.bound >= self.weighed[0].value * (1 - 1e-9)


@dataclass(frozen=True)
class Rewrite:
    """How to rewrite the cuts."""

    unlock: str
    mix: Mix
    classes: int | None
    context_size: int | None
    synthesizers: dict[str, str]  # names by crossing, as in `net.code`
    loss: str | None = None  # a name in torch.nn.functional; empty: any other function
    training: Training = field(default_factory=Training)  # without its optimizer

    @classmethod
    def of(cls, settings: Settings, synthesizers: dict[str, str]) -> "Rewrite":
        """Make the plain data of settings, and of the names of synthesizers."""
        training = replace(settings.training, optimizer=None)
        context = settings.classes, settings.context_size
        return cls(settings.unlock, settings.mix, *context, synthesizers, loss_name(settings.loss), training)

    @property
    def settings(self) -> Settings:
        """The settings again.

        Raises:
            DniFxError: If the loss has no name.
        """
        if self.loss == "":
            raise DniFxError("the loss of the synthesizers is a function of your own, which a plan cannot name")
        return Settings(self.unlock, self.mix, self.classes, self.context_size, self.loss, self.training)


@dataclass(frozen=True)
class Plan:
    """The decision: cuts, segments, their costs, the reason; and for a rewritten model, how it was rewritten."""

    model: str  # class name
    fingerprint: str  # of the captured graph, the same for every batch size
    inputs: tuple[str, ...]  # the example inputs: name, shape, dtype
    inputs_from: str  # their source
    cuts: tuple[Cut, ...]
    segments: tuple[SegmentPlan, ...]
    why: str
    frontend: str = "fx"
    tried: tuple[str, ...] = ()  # front ends that could not capture the model, and why
    tied: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # numbers of the segments, for each parameter in several
    rewrite: Rewrite | None = None
    forecast: Forecast | None = None
    verdict: Verdict | None = None  # None: the person chose the cuts
    states: tuple[TimeCutPlan, ...] = ()  # cuts in time

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
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise ValueError(f'expected a plan with "schema": {SCHEMA}')
            return cls._from_dict({k: v for k, v in data.items() if k != "schema"})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise DniFxError(f"{source} is not a plan that dni-fx wrote: {reason}") from None

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

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> "Plan":
        cuts = tuple(
            Cut(str(c["after"]), tuple(CrossingTensor(**(t | {"shape": tuple(t["shape"])})) for t in c["tensors"]))
            for c in data["cuts"]
        )
        segments = tuple(SegmentPlan(**(s | {"nodes": tuple(s["nodes"])})) for s in data["segments"])
        forecast, verdict = (None if data.get(name) is None else read(data[name]) for name, read in _READ.items())
        rewrite = _read_rewrite(data["rewrite"]) if data["rewrite"] is not None else None
        rest: dict[str, Any] = {"cuts": cuts, "segments": segments, "rewrite": rewrite, "inputs": tuple(data["inputs"])}
        rest |= {"forecast": forecast, "verdict": verdict}
        rest |= {"states": tuple(map(_read_state, data.get("states", ())))}
        rest |= {"tried": tuple(data.get("tried", ()))}
        rest |= {"tied": {str(name): tuple(segments) for name, segments in data.get("tied", {}).items()}}
        plan = cls(**(data | rest))
        for entry in fields(cls):
            if entry.type is str and not isinstance(getattr(plan, entry.name), str):
                raise TypeError(f"{entry.name} is no text")
        return plan


def _read_state(data: dict[str, Any]) -> TimeCutPlan:
    tuples = [{key: tuple(t[key]) for key in ("path", "result", "shape")} for t in data["tensors"]]
    tensors = tuple(StateTensor(**(t | own)) for t, own in zip(data["tensors"], tuples, strict=True))
    return TimeCutPlan(tensors, tuple(data["enters"]), data["leaves"])


def _read_rewrite(data: dict[str, Any]) -> Rewrite:
    mix = data["mix"]
    training = Training(**data.get("training", {}))
    return Rewrite(**(data | {"mix": tuple(mix) if isinstance(mix, list) else mix, "training": training}))


def _read_forecast(data: dict[str, Any]) -> Forecast:
    return Forecast(**(data | {name: Outlook(**data[name]) for name in ("backprop", "cut")}))


def _read_verdict(data: dict[str, Any]) -> Verdict:
    weighed = [w | {"after": tuple(w["after"]), "outlook": Outlook(**w["outlook"])} for w in data["weighed"]]
    return Verdict(**(data | {"weighed": tuple(Weighed(**w) for w in weighed)}))


_READ: dict[str, Callable[[dict[str, Any]], Any]] = {"forecast": _read_forecast, "verdict": _read_verdict}


def crossing_name(cut: int, node: str) -> str:
    """The name under `net.dni` of the crossing of one tensor at one cut."""
    return f"cut{cut}_{node}"


def time_name(index: int) -> str:
    """The name under `net.dni` of the crossing of a state, at a cut in time."""
    return f"time{index}"


def crossings(plan: Plan) -> Iterator[tuple[str, CrossingTensor | TimeCutPlan]]:
    """Every crossing of a plan by its name under `net.dni`: each needs one synthesizer."""
    for index, cut in enumerate(plan.cuts):
        for tensor in cut.tensors:
            yield crossing_name(index, tensor.node), tensor
    for index, state in enumerate(plan.states):
        yield time_name(index), state
