"""A net that one way trains, with all that its training changes."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.api import transform
from dni_fx.bench import checkpoint_blocks, checkpoint_by_root, context_for, copied_model, training_peak
from dni_fx.comparison.batches import Batch
from dni_fx.comparison.losses import Objective
from dni_fx.comparison.record import Record
from dni_fx.errors import CaptureError, DniFxError, NoLegalCutError, described, first_line
from dni_fx.model import in_train_mode
from dni_fx.model import seed as seed_all
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import Training
from dni_fx.store import random_state, set_random_state

__all__ = ["MakeOptimizer", "Random", "Trainee", "trainees"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Random:
    """A state of the random generators of torch, Python and numpy: `with random:` draws from it alone."""

    def __init__(self, number: int) -> None:
        outside = random_state()
        seed_all(number)
        self.state = random_state()
        set_random_state(outside)

    def __enter__(self) -> None:
        self._outside = random_state()
        set_random_state(self.state)

    def __exit__(self, *exception: object) -> None:
        self.state = random_state()
        set_random_state(self._outside)


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
            self.record.failed = f"{type(error).__name__}: {first_line(error)}"
            return
        seconds = _now(device) - start
        if not math.isfinite(loss):
            self.record.failed = f"the loss is {float(loss)} at step {len(self.record.losses) + 1}"
            return
        self.record.losses.append(float(loss))
        self.record.seconds.append(float("nan") if measure_memory else seconds)

    def _step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        context = context_for(self.net, batch.target)
        output = self.net(*batch.inputs.args, **batch.inputs.kwargs, **context)
        loss = self.objective.function(output, batch.target)
        del output
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def check(self, metric: Callable[[nn.Module], Any]) -> None:
        """Raise a DniFxError if a metric fails."""
        self.score(metric, 0)
        self.record.scores.clear()

    def score(self, metric: Callable[[nn.Module], Any], step: int) -> None:
        """Record the score of the net, in eval mode; a metric that draws, draws the same for every way."""
        modes = {module: module.training for module in self.net.modules()}
        self.net.eval()
        try:
            with Random(step), torch.no_grad():
                self.record.scores.append((step, float(metric(self.net))))
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DniFxError(f"metric= failed on the net of {self.record.name}: {reason}") from None
        finally:
            self.net.train()
            for module, mode in modes.items():
                module.training = mode

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
    """A copy of the model for each way: backprop, checkpointing, and the cut models.

    Args:
        ways: Arguments of `dni_fx.transform`, for each cut model.
    """
    yield _trainee(Record("backprop"), copied_model(model), None, objective, optimizer, seed)
    checkpointed, record = copied_model(model), Record("checkpointing")
    try:
        _checkpoint(checkpointed)
    except DniFxError as error:
        record.failed = str(error)
    yield _trainee(record, checkpointed, None, objective, optimizer, seed)
    names: list[str] = []
    for way in ways:
        made = _cut(copied_model(model), example, way, objective, optimizer, seed)
        names.append(made.record.name)
        if names.count(made.record.name) > 1:
            made.record.name += f" ({names.count(made.record.name)})"
        yield made


def _checkpoint(model: nn.Module) -> None:
    """Checkpoint runs of blocks, which takes the least memory; else, blocks that are in no Sequential, each."""
    try:
        checkpoint_by_root(model)
    except DniFxError:
        checkpoint_blocks(model)


def _cut(
    model: nn.Module, example: Batch, way: Mapping[str, Any], objective: Objective, optimizer: MakeOptimizer, seed: int
) -> Trainee:
    """The cut model; if it cannot be cut, its record says why."""
    record, stepping = Record(_name(way)), way.get("step") == "segment"
    known = {} if objective.given is None else {"loss": objective.given}
    options = known | ({"optimizer": optimizer} if stepping else {}) | dict(way)
    own: torch.optim.Optimizer | None = None
    if not stepping and isinstance(training := way.get("training"), Training) and training.needs_optimizer:
        options["optimizer"] = own = _made(optimizer, [p for p in model.parameters() if p.requires_grad])
    net: nn.Module = model
    try:
        with Random(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the net has no cuts")  # the record says so
            net = transform(model, example.inputs.args, example_kwargs=example.inputs.kwargs, **options)
        record.segments = len(net.dni.plan.segments)
        if record.segments == 1 and not net.dni.plan.states:
            record.failed = net.dni.plan.why
    except (CaptureError, NoLegalCutError) as error:
        record.failed = str(error)
    except TypeError as error:
        raise DniFxError(f"ways= holds {way!r}: {first_line(error)}") from None
    if own is None and isinstance(net, DecoupledModule):
        own = net.dni.optimizer
    return _trainee(record, net, own, objective, optimizer, seed)


def _trainee(
    record: Record, net: nn.Module, own: Any, objective: Objective, optimizer: MakeOptimizer, seed: int
) -> Trainee:
    made = _made(optimizer, [p for p in net.parameters() if p.requires_grad]) if own is None else own
    in_train_mode(net)
    return Trainee(record, net, made, objective, Random(seed + 1))


def _made(optimizer: MakeOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if not parameters:
        raise DniFxError("the model has no parameters that require grad: there is nothing to train")
    try:
        made: object = optimizer(parameters)
    except Exception as error:  # the person's code may raise any error
        raise DniFxError(f"optimizer= failed: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise DniFxError(f"optimizer= returned {described(made)}, which is no torch optimizer")
    return made


def _name(way: Mapping[str, Any]) -> str:
    """The name of a row, such as "4 segments, linear"."""
    cuts, rest = way.get("cuts", "auto"), {k: v for k, v in way.items() if k not in ("cuts", "synthesizer")}
    where = f"{cuts} segments" if isinstance(cuts, int) else "auto cuts" if cuts == "auto" else _words(cuts)
    parts = [where, *([_words(way["synthesizer"])] if "synthesizer" in way else [])]
    training = rest.pop("training", None)
    if isinstance(training, Training):
        rest |= {name: value for name, value in vars(training).items() if value != getattr(Training, name)}
    return ", ".join([*parts, *(f"{name}={_words(value)}" for name, value in rest.items())])


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return getattr(value, "__name__", None) or str(value).split("\n")[0]


def _now(device: torch.device) -> float:
    """Seconds, after all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
