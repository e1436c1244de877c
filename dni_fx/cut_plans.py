"""The cuts of a plan: what crosses each, and what computes its synthetic gradients. Plain data."""

import math
from dataclasses import dataclass, replace

__all__ = ["CrossingTensor", "Cut", "ExitPlan", "StateTensor", "TimeCutPlan", "UnitPlan", "run_twice"]


@dataclass(frozen=True)
class CrossingTensor:
    """A tensor that crosses a cut.

    Attributes:
        node: The node of the graph that computes the tensor.
        shape: Its shape for the example inputs.
        dtype: Its dtype, as in "float32".
        bytes: Its size for the example inputs.
        axis: The feature axis.
        batch: The batch axis; None: no axis follows the batch.
        rows: Entries of the batch axis for each sample; 0: their number varies.
    """

    node: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    axis: int
    batch: int | None = 0
    rows: int = 1


@dataclass(frozen=True)
class UnitPlan:
    """The next units above a cut where they run once, for the exit and for the segment above.

    Attributes:
        nodes: The nodes, in the order of the graph: the first of the segment above.
        tensor: The value at the end of the units, from which the other nodes of the exit go on.
        inputs: The nodes below the cut whose values the units take without gradient.
        borrowed: The submodules, parameters and buffers of the model that the nodes use.
    """

    nodes: tuple[str, ...]
    tensor: CrossingTensor
    inputs: tuple[str, ...]
    borrowed: tuple[str, ...]


@dataclass(frozen=True)
class ExitPlan:
    """An exit: later nodes of the model, which run on the tensors at a cut, up to the loss.

    Attributes:
        units: The number of next units that run whole; "all": the rest of the model.
        weights: Whose weights the nodes use; see `dni_fx.synthesizers.ExitOptions`.
        nodes: The nodes that run for the exit alone, in the order of the graph.
        bypassed: For each node that does not run, but whose value is used: the node whose value replaces it.
        inputs: The nodes below the cut whose values the exit takes without gradient, such as a mask.
        borrowed: The submodules, parameters and buffers of the model that the nodes use.
        heads: The outputs for which the exit has small heads of its own, in place of nodes of the model.
        loss: The node that computes the model's own loss; empty: the loss is `loss=`, of the outputs.
        target: The input of the model that is the target if the call gives none; empty: a call gives the target.
        writes: Whether a node of the exit writes in place.
        flops: Operations of a forward pass of `nodes`.
        unit: The next units, if they run once, for the exit and for the segment above.
        constant: The part of `borrowed` that the exit does not train.
        not_copied: The part of `borrowed` that is the model's own, whatever `weights` is.
        frozen_units: The exit does not train the units, wherever they run.
        features_last: The features of the outputs are on the last axis, as in (N, T, K).
        tokens: The share of the positions that the loss is of.
    """

    units: int | str
    weights: str
    nodes: tuple[str, ...]
    bypassed: dict[str, str]
    inputs: tuple[str, ...]
    borrowed: tuple[str, ...]
    heads: tuple[CrossingTensor, ...] = ()
    loss: str = ""
    target: str = ""
    writes: bool = False
    flops: int = 0
    unit: UnitPlan | None = None
    constant: tuple[str, ...] = ()
    not_copied: tuple[str, ...] = ()
    frozen_units: bool = False
    features_last: bool = False
    tokens: float = 1.0

    @property
    def copied(self) -> tuple[str, ...]:
        """The part of `borrowed` of which the exit has copies."""
        own = self.weights in ("copy", "fresh", "ema")
        return tuple(path for path in self.borrowed if own and path not in self.not_copied)

    @property
    def trains(self) -> bool:
        """Whether the exit trains any weights."""
        return self.weights not in ("readonly", "ema")


@dataclass(frozen=True)
class Cut:
    """A boundary between two consecutive segments: the tensors that cross it.

    Attributes:
        after: The last node of the segment below.
        tensors: The tensors that cross the cut.
        exit: The exit that computes the synthetic gradients; None: each tensor has a synthesizer of its own.
    """

    after: str
    tensors: tuple[CrossingTensor, ...]
    exit: ExitPlan | None = None

    @property
    def predicted(self) -> tuple[CrossingTensor, ...]:
        """The tensors that get a synthetic gradient: those that cross the cut, or the value of the exit's units."""
        if self.exit is None or self.exit.unit is None:
            return self.tensors
        return (self.exit.unit.tensor,)


@dataclass(frozen=True)
class StateTensor:
    """A tensor that goes from one call of a recurrent model to the next.

    Attributes:
        input: The placeholder that takes the tensor; without a graph, the argument.
        path: The path in this input, if the input is a tuple or dict of tensors.
        result: The path of the next state in the result of the model.
        output: The index of the next state among the output nodes of the graph.
        shape: Its shape for the example inputs.
        dtype: Its dtype, as in "float32".
        axis: The batch axis.
    """

    input: str
    path: tuple[int | str, ...]
    result: tuple[int | str, ...]
    output: int
    shape: tuple[int, ...]
    dtype: str
    axis: int

    @property
    def features(self) -> int:
        """Entries of one row."""
        return math.prod(self.shape) // self.shape[self.axis]


@dataclass(frozen=True)
class TimeCutPlan:
    """A cut in time: the tensors of the state that the same segments use and compute. They share a synthesizer.

    Attributes:
        tensors: The tensors of the state.
        enters: The segments that use the state.
        leaves: The segment that computes the next state.
    """

    tensors: tuple[StateTensor, ...]
    enters: tuple[int, ...] = (0,)
    leaves: int = 0


def run_twice(cut: Cut) -> Cut:
    """The cut with the same exit, whose units run a second time for the exit."""
    if cut.exit is None or cut.exit.unit is None:
        return cut
    planned, unit = cut.exit, cut.exit.unit
    of_units = tuple(path for path in unit.borrowed if path not in planned.borrowed)
    twice = replace(
        planned,
        nodes=(*unit.nodes, *planned.nodes),
        inputs=tuple(dict.fromkeys([*unit.inputs, *(name for name in planned.inputs if name not in unit.nodes)])),
        borrowed=tuple(dict.fromkeys([*unit.borrowed, *planned.borrowed])),
        unit=None,
        constant=tuple(dict.fromkeys([*planned.constant, *(of_units if planned.frozen_units else ())])),
        not_copied=of_units,
    )
    return replace(cut, exit=twice)
