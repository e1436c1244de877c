"""What `bench` measures: the cuts of its rows, and how the cut models are trained."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.arguments import check_arguments
from dni_fx.capture import StateOption
from dni_fx.cuts import Cuts
from dni_fx.errors import DniFxError, described
from dni_fx.model import tensors_in
from dni_fx.runtime import is_cross_entropy
from dni_fx.settings import DEFAULTS, Loss, Settings, Training, loss_function
from dni_fx.synthesizers import Factory

__all__ = ["Options", "mean_square", "parse_segments", "segments", "target_for"]


@dataclass(frozen=True)
class Options:
    """Which ways to train to compare, and how.

    Args:
        cuts: As in `dni_fx.transform`, by the name of their row. A second row, "stepping", uses step="segment".
        steps: Number of timed steps for each row.
        synthesizer: As in `dni_fx.transform`.
        classes: Condition the synthesizers on labels of so many classes.
        loss: A function of the model's output; None: the sum of the mean squares of all outputs.
        training_loss: The name of a loss in torch.nn.functional, of made up targets, in the place of `loss`: with it
            the cuts get exits.
        optimizer: A function that makes an optimizer from parameters.
        others: Compare with checkpointing and other savers of memory, too.
        context_size: Condition the synthesizers on a vector of so many entries for each sample, in place of labels.
        training, frontend, state: As in `dni_fx.transform`.
    """

    cuts: Mapping[str, Cuts] = field(default_factory=lambda: segments(2, 4, 8, "auto"))
    steps: int = 10
    synthesizer: str | Factory = "auto"
    classes: int | None = None
    loss: Callable[[Any], Tensor] | None = None
    training_loss: str | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam
    others: bool = True
    context_size: int | None = None
    training: Training = DEFAULTS.training
    frontend: str = "auto"
    state: StateOption | None = None

    def __post_init__(self) -> None:
        check_arguments(
            {name: value for name, value in vars(self).items() if name not in ("cuts", "loss", "optimizer")}
        )

    @property
    def settings(self) -> Settings:
        """The settings of the rows that are cut.

        Raises:
            DniFxError: If two of them exclude each other.
        """
        context = self.classes, self.context_size
        return Settings("backward", 0.0, *context, self.training_loss, self.training)

    def loss_of(self, output: Any) -> Tensor:
        """The loss of the model's output."""
        if self.training_loss is None:
            return mean_square(output) if self.loss is None else self.loss(output)
        function = loss_function(self.training_loss)
        return function(tensors_in(output)[0], target_for(function, output))


def mean_square(output: Any) -> Tensor:
    """A loss for any output: the sum of the mean squares of its tensors."""
    squares = [t.square().mean() for t in tensors_in(output) if t.requires_grad]
    if not squares:
        raise DniFxError("no output carries gradient; does a parameter require grad?")
    return sum(squares[1:], start=squares[0])


def target_for(loss: Loss, output: Any) -> Tensor:
    """A made up target in the form that a loss takes: labels, or values like the outputs."""
    first = tensors_in(output)[0]
    if is_cross_entropy(loss):
        return torch.zeros((*first.shape[:1], *first.shape[2:]), dtype=torch.int64, device=first.device)
    return torch.zeros_like(first)


def parse_segments(text: str) -> dict[str, Cuts]:
    """Parse `--segments`, as in `2,4,auto`.

    Raises:
        DniFxError: If the text is not such a list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "auto" or (re.fullmatch(r"\d{1,9}", part) and int(part) > 1) for part in parts):
        raise DniFxError(f"--segments {described(text)}: numbers of segments, 2 or more, and auto, as in 2,4,8,auto")
    return segments(*(part if part == "auto" else int(part) for part in parts))


def segments(*counts: int | str) -> dict[str, Cuts]:
    """The cuts for each number of segments, or for "auto", by the name of their row."""
    return {"auto" if count == "auto" else f"{count} segments": count for count in counts}
