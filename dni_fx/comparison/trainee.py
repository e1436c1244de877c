"""A net that one way trains, with all that its training changes."""

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.api import transform
from dni_fx.bench import checkpoint_blocks, training_peak
from dni_fx.comparison.batches import Batch
from dni_fx.comparison.losses import Objective
from dni_fx.comparison.record import Record
from dni_fx.errors import DniFxError, first_line
from dni_fx.runtime import DecoupledModule

__all__ = ["MakeOptimizer", "Random", "Trainee", "trainees"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Random:
    """A state of torch's random generators: `with random:` draws from it, and leaves the global one as it was."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.states = _states()

    def __enter__(self) -> None:
        self._outside = _states()
        _set_states(self.states)

    def __exit__(self, *exception: object) -> None:
        self.states = _states()
        _set_states(self._outside)


@dataclass
class Trainee:
    """A net with its optimizer, its random numbers and its record."""

    record: Record
    net: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    random: Random

    def train_on(self, batch: Batch, *, measure_memory: bool = False) -> None:
        """Run one training step, and record it; an error ends this way."""
        device = batch.inputs.tensors()[0].device if batch.inputs.tensors() else torch.device("cpu")
        start = _now(device)
        try:
            with self.random:
                if measure_memory:
                    losses: list[Tensor] = []
                    live = training_peak(lambda: losses.append(self._step(batch)), self.net.parameters())
                    self.record.activations, self.record.peak = max(live.activations), live.peak
                    loss = losses[0]
                else:
                    loss = self._step(batch)
        except Exception as error:  # the person's code may raise any error
            self.record.failed = first_line(error)
            return
        seconds = _now(device) - start
        self.record.losses.append(float(loss))
        self.record.seconds.append(float("nan") if measure_memory else seconds)

    def _step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        context: dict[str, Any] = {}
        if isinstance(self.net, DecoupledModule) and self.net.dni_takes_context() and batch.target is not None:
            context = {"dni_context": batch.target}
        output = self.net(*batch.inputs.args, **batch.inputs.kwargs, **context)
        loss = self.objective.function(output, batch.target)
        del output
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def score(self, metric: Callable[[nn.Module], Any], step: int) -> None:
        """Record the score of the net, in eval mode."""
        self.net.eval()
        try:
            with self.random, torch.no_grad():
                self.record.scores.append((step, float(metric(self.net))))
        except Exception as error:
            raise DniFxError(f"metric= failed on the net of {self.record.name}: {first_line(error)}") from None
        finally:
            self.net.train()

    def measure_cosines(self) -> None:
        """Record how well the synthesizers predicted when they were measured last."""
        if isinstance(self.net, DecoupledModule):
            self.record.cosines = {name: m["cosine"] for name, m in self.net.dni.metrics().items()}


def trainees(
    model: nn.Module,
    example: Batch,
    ways: Iterable[Mapping[str, Any]],
    objective: Objective,
    optimizer: MakeOptimizer,
    seed: int,
) -> Iterator[Trainee]:
    """A copy of the model for each way: backprop, checkpointed blocks, and the cut models.

    Args:
        ways: Arguments of `dni_fx.transform`, for each cut model.
    """
    yield _trainee(Record("backprop"), copy.deepcopy(model), None, objective, optimizer, seed)
    checkpointed, record = copy.deepcopy(model), Record("checkpointing")
    try:
        checkpoint_blocks(checkpointed)
    except DniFxError as error:
        record.failed = str(error)
    yield _trainee(record, checkpointed, None, objective, optimizer, seed)
    for way in ways:
        yield _cut(copy.deepcopy(model), example, way, objective, optimizer, seed)


def _cut(
    model: nn.Module, example: Batch, way: Mapping[str, Any], objective: Objective, optimizer: MakeOptimizer, seed: int
) -> Trainee:
    """The cut model; if it cannot be cut, its record says why."""
    record, stepping = Record(_name(way)), way.get("step") == "segment"
    known = {} if objective.given is None else {"loss": objective.given}
    options = known | ({"optimizer": optimizer} if stepping else {}) | dict(way)
    net: nn.Module = model
    try:
        with Random(seed), warnings.catch_warnings():
            warnings.filterwarnings("error", "the net has no cuts")  # there is nothing to compare
            net = transform(model, example.inputs.args, example_kwargs=example.inputs.kwargs, **options)
        record.segments = len(net.dni.plan.segments)
    except Exception as error:  # of the person's model, or a wrong option
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise DniFxError(f"ways= holds {way!r}: {first_line(error)}") from None
        record.failed = first_line(error)
    own = net.dni.optimizer if isinstance(net, DecoupledModule) else None
    return _trainee(record, net, own, objective, optimizer, seed)


def _trainee(
    record: Record, net: nn.Module, own: Any, objective: Objective, optimizer: MakeOptimizer, seed: int
) -> Trainee:
    made = optimizer([p for p in net.parameters() if p.requires_grad]) if own is None else own
    return Trainee(record, net.train(), made, objective, Random(seed + 1))


def _name(way: Mapping[str, Any]) -> str:
    """The name of a row, such as "4 segments, linear"."""
    cuts, rest = way.get("cuts", "auto"), {k: v for k, v in way.items() if k not in ("cuts", "synthesizer")}
    where = f"{cuts} segments" if isinstance(cuts, int) else "auto cuts" if cuts == "auto" else _words(cuts)
    parts = [where, *([_words(way["synthesizer"])] if "synthesizer" in way else [])]
    return ", ".join([*parts, *(f"{name}={_words(value)}" for name, value in rest.items())])


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return getattr(value, "__name__", None) or str(value).split("\n")[0]


def _states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])


def _now(device: torch.device) -> float:
    """Seconds, after all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
