"""The costs of a model with any cuts: time, memory and pipeline throughput, from the numbers of each node."""

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import networkx as nx
import numpy as np

from dni_fx.cost.exits import WORST_RANK, ExitCost, ExitPlanner
from dni_fx.cost.memory import Memory, Peak
from dni_fx.cost.pieces import PieceFinder, Pieces
from dni_fx.cost.synthesizers import FLOPS_PER_BYTE, Price
from dni_fx.partition import LoadsFrom, Objective, Position, flow_node, largest_parameter

__all__ = ["OPTIMIZER_STATES", "CostModel", "SegmentCost", "StepCost"]


OPTIMIZER_STATES = 2  # tensors that the optimizer keeps for each parameter: Adam's


@dataclass(frozen=True)
class CutCost:
    """Sums over the synthesizers of one cut."""

    time: float  # to predict and to train
    transfer: float  # time to send the crossing tensors to another process
    static: int  # bytes of their parameters and optimizer state
    gradient: int  # bytes of the gradients of their parameters
    kept: int  # bytes of their predictions, and of the tensors that autograd keeps, until the targets are there
    training: int  # bytes that the training takes for a moment
    exit: int = 0  # bytes that the exit takes for a moment, while autograd keeps the activations of the segment below
    saved_by_units: int = 0  # bytes that autograd keeps for units above while the segment below runs backward


@dataclass(frozen=True)
class SegmentCost:
    """Times of one segment, and its peak of memory."""

    forward: float
    backward: float  # with what it computes again
    synthesizers: float  # of its upper cut
    transfer: float  # of the tensors that cross its two cuts
    peak: Peak

    @property
    def load(self) -> float:
        """Time of a step in a process that holds this segment alone."""
        return self.forward + self.backward + self.synthesizers + self.transfer


@dataclass(frozen=True)
class StepCost:
    """Costs of one training step."""

    segments: tuple[SegmentCost, ...]
    resident: int  # bytes that are always there: parameters, buffers, optimizer state, the batch
    synthesizers: int  # bytes that are always there for the synthesizers
    optimizer: float  # bytes while the optimizer steps: all gradients, and temporaries

    @property
    def step(self) -> float:
        """Time of a step on one device."""
        return sum(s.forward + s.backward + s.synthesizers for s in self.segments)

    @property
    def slowest(self) -> float:
        """Time of a step if every segment has a device of its own: the time of the heaviest segment."""
        return max(s.load for s in self.segments)

    @property
    def peak(self) -> float:
        """Bytes at the moment with the most."""
        return self.resident + self.synthesizers + max(self.optimizer, *(s.peak.bytes for s in self.segments))


class CostModel:
    """Predicts the costs of any cuts of one graph.

    Args:
        flow: The result of `graph.dataflow`.
        prices: The price of a synthesizer, by node.
        refused: The reason why there is no synthesizer, by node.
        avoided: Nodes whose values cross no automatic cut, if there is another place.
        resident: Bytes of parameters, buffers, optimizer state and batch.
        exits: Plans the exits of cuts; None: each tensor has a synthesizer of its own.
        unit: The unit of all times: "FLOPs" or "s".
    """

    def __init__(
        self,
        flow: "nx.DiGraph[str]",
        prices: Mapping[str, Price],
        resident: int,
        *,
        refused: Mapping[str, str] | None = None,
        avoided: Set[str] = frozenset(),
        exits: ExitPlanner | None = None,
        unit: str = "FLOPs",
    ) -> None:
        self.flow = flow
        self.memory = Memory(flow)
        self.prices = prices
        self.refused = refused or {}
        self.avoided = avoided
        self.exits = exits
        self.resident = resident
        self.unit = unit
        self.pieces = PieceFinder(flow, self.memory)
        self.forward = np.cumsum([0.0, *(flow_node(flow, name).forward for name in flow)])
        self.backward = np.cumsum([0.0, *(flow_node(flow, name).backward for name in flow)])

    @property
    def count(self) -> int:
        """The number of nodes."""
        return len(self.forward) - 1

    def refusal(self, position: Position) -> str:
        """The reason why a tensor that crosses this cut can have no synthesizer; empty: each tensor can."""
        if self.exits is not None:
            return (
                "" if self.exits.route(position) else f"no exit from {position.after}: the loss does not depend on it"
            )
        return next((self.refused[name] for name in position.crossing if name in self.refused), "")

    def rank(self, position: Position) -> int:
        """How good a place for an automatic cut this is: 0 is good; WORST_RANK is taken if nothing else is left."""
        if self.exits is not None:
            return self.exits.rank(position)
        return WORST_RANK * any(name in self.avoided for name in position.crossing)

    def cut(self, position: Position) -> CutCost:
        """The costs of the synthesizers of one cut."""
        if self.exits is not None:
            return _cut_with_exit(self.exits.cost(position), position)
        prices = {name: self.prices[name] for name in position.crossing if name in self.prices}
        size = sum(p.parameter_bytes for p in prices.values())
        return CutCost(
            time=sum(p.time for p in prices.values()),
            transfer=sum(p.transfer for p in prices.values()),
            static=size * (1 + OPTIMIZER_STATES),
            gradient=size,
            kept=sum(p.kept + p.bytes for p in prices.values()),
            training=max(2 * sum(p.bytes for p in prices.values()), size),  # target and error; or gradients
        )

    def share(self, cuts: Sequence[Position]) -> float:
        """The time of all synthesizers, as a share of the time of backprop's step."""
        step = self.predict([]).step
        return sum(self.cut(position).time for position in cuts) / step if step else 0.0

    def share_of_layers(self, cuts: Sequence[Position]) -> float:
        """The share of a step that exits through later layers take, without small heads."""
        with_layers = [cut for cut in cuts if self.exits is not None and not self.exits.cost(cut).has_heads]
        return self.share(with_layers)

    def segment_loads(self, objective: Objective, candidates: Sequence[Position]) -> LoadsFrom:
        """The load (bytes, or time) of every segment between two candidates, for the searches of `chain`."""
        ends = [0, *(p.index + 1 for p in candidates), self.count]
        cuts = [self.cut(p) for p in candidates]
        if objective == "memory":
            kept = np.array([0.0, *(c.kept for c in cuts), 0.0])
            training = np.array([0.0, *(c.training for c in cuts), 0.0])
            exits = np.array([0.0, *(c.exit for c in cuts), 0.0])
            units = np.array([0.0, *(c.saved_by_units for c in cuts), 0.0])
            return self.memory.segment_peaks(ends, kept, kept + units, training, exits)
        time = (self.forward + self.backward)[ends]
        synthesizers = np.array([0.0, *(c.time for c in cuts), 0.0])
        transfer = np.array([0.0, *(c.transfer for c in cuts), 0.0])
        return lambda i: time[i + 1 :] - time[i] + transfer[i] + (synthesizers + transfer)[i + 1 :]

    def checkpointed(self, cuts: Sequence[Position]) -> tuple[float, float]:
        """The peak bytes and the time of backprop that keeps only what crosses the cuts, and recomputes each segment.

        The last segment is not recomputed: its backward pass comes first.
        """
        ends = [0, *(p.index + 1 for p in cuts), self.count]
        kept = [0, *itertools.accumulate(p.bytes for p in cuts)]
        gradients = self.memory.parameters
        peaks = [
            # `peak` counts the gradients of the parameters below; here those above are there.
            self.memory.peak(i, j, 0.0, 0.0, 0.0).bytes + below + (gradients[-1] - gradients[j]) - gradients[i]
            for i, j, below in zip(ends[:-1], ends[1:], kept, strict=True)
        ]
        time = float(self.forward[-1] + self.backward[-1] + self.forward[ends[-2]])
        return self.resident + max(self.memory.optimizer, *peaks), time

    def predict(self, cuts: Sequence[Position], pieces: Sequence[Pieces] = ()) -> StepCost:
        """Predict a step of the model with these cuts and `unlock="backward"`; without any cut, a step of backprop.

        Args:
            pieces: For each segment, the pieces whose activations its backward pass computes again; empty: none.
        """
        costs, spans = self._spans(cuts)
        again = [sum(float(self.forward[j] - self.forward[i - 1]) for i, j in found) for found in pieces]
        memory = self._memory_with(pieces)
        segments = tuple(
            SegmentCost(
                forward=float(self.forward[span[1]] - self.forward[span[0]]),
                backward=float(self.backward[span[1]] - self.backward[span[0]]) + twice,
                synthesizers=above.time,
                transfer=below.transfer + above.transfer,
                peak=memory.peak(*span),
            )
            for span, below, above, twice in zip(spans, costs[:-1], costs[1:], again or [0.0] * len(spans), strict=True)
        )
        largest = max(c.gradient for c in costs)
        temporaries = 2 * max(0, largest - largest_parameter(self.flow))
        optimizer = self.memory.optimizer + sum(c.gradient for c in costs) + temporaries
        return StepCost(segments, self.resident, sum(c.static for c in costs), optimizer)

    def over_step(self, cuts: Sequence[Position], pieces: Sequence[Pieces] = ()) -> list[float]:
        """The bytes that the same step allocates, at each moment until the optimizer steps.

        Each segment runs its nodes forward, then backward, and then trains its synthesizers.
        """
        memory = self._memory_with(pieces)
        found: list[float] = []
        for span in self._spans(cuts)[1]:
            forward, backward, trained = memory.moments(*span)
            found += [*forward.tolist(), *backward[::-1].tolist(), trained]
        return found

    def _memory_with(self, pieces: Sequence[Pieces]) -> Memory:
        return self.memory if not any(pieces) else Memory(self.flow, [piece for found in pieces for piece in found])

    def _spans(
        self, cuts: Sequence[Position]
    ) -> tuple[list[CutCost], list[tuple[int, int, float, float, float, float]]]:
        """The costs of each cut, with none at both ends, and the arguments of `Memory.peak` for each segment."""
        ends = [0, *(p.index + 1 for p in cuts), self.count]
        nothing = CutCost(0.0, 0.0, 0, 0, 0, 0)
        costs = [nothing, *map(self.cut, cuts), nothing]
        gradients = [0, *itertools.accumulate(c.gradient for c in costs[:-2])]  # of lower synthesizers
        return costs, [
            (i, j, below.kept + before, above.kept + above.saved_by_units, below.training, above.exit)
            for i, j, below, above, before in zip(ends[:-1], ends[1:], costs[:-1], costs[1:], gradients, strict=True)
        ]


def _cut_with_exit(exit: ExitCost, position: Position) -> CutCost:
    return CutCost(
        time=exit.time,
        transfer=FLOPS_PER_BYTE * position.bytes,
        static=exit.own * (1 + OPTIMIZER_STATES * bool(exit.trained)),
        gradient=exit.own if exit.trained else 0,
        kept=exit.trained + position.bytes,
        training=2 * position.bytes,
        exit=exit.saved_by_units + exit.saved + exit.trained + position.bytes,
        saved_by_units=exit.saved_by_units,
    )
