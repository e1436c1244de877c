"""The memory of a cut in time, from one window to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dni_fx.errors import DniFxError
from dni_fx.ops import is_readable

__all__ = ["Memory", "Origin", "Target"]


class Origin(NamedTuple):
    """Where the rows of a state come from; a bool a row, (N, 1)."""

    goes_on: Tensor  # from the last window: the row equals the row that was handed on
    known: Tensor  # from there, or the sequence in this row has ended and a new one begins

    @property
    def may_be_known(self) -> bool:
        """Whether a row has a known origin; True on a GPU, for whose values the step would wait."""
        return not is_readable(self.known) or bool(self.known.any())


class Target(NamedTuple):
    """The gradient at a state that an earlier window handed on."""

    handed_on: Tensor  # rows of that state, (N, F)
    gradient: Tensor  # (N, F)
    known: Tensor  # rows that have a target, (N, 1)


@dataclass
class Memory:
    """The state that the last window handed on, and values that are computed now and used later.

    All are in one object beside the module, since `dni_fx.model.preserved` restores the attributes of modules.
    """

    handed_on: Tensor | None = None  # rows of the state at the end of the last window, (N, F); None: no window yet
    ended: Tensor | None = None  # rows whose sequence `reset` has ended, (N,); None: no row
    auxiliary: Tensor | None = None  # the auxiliary prediction of the current window, with its graph
    due: list[Target] = field(default_factory=list)  # with a horizon: targets for the next backward pass
    unknown_calls: int = 0  # calls in a row in which no row had a known origin; on a GPU: all calls
    ever_known: Tensor | None = None  # on a GPU: whether a row had a known origin

    def remember(self, rows: Tensor) -> None:
        """Keep the rows that a window hands on."""
        self.handed_on, self.ended = rows.detach(), None

    def forget(self) -> None:
        """Begin as if there had been no window before."""
        self.handed_on = self.ended = self.auxiliary = None
        self.due, self.unknown_calls, self.ever_known = [], 0, None

    def end(self, rows: Tensor | None) -> None:
        """End the sequences in `rows`, a bool tensor (N,); None: all.

        Raises:
            DniFxError: If `rows` is no mask of the rows of the last window.
        """
        if self.handed_on is None:
            return
        count = len(self.handed_on)
        if not isinstance(rows, Tensor | None):
            raise DniFxError(
                f"reset takes a bool tensor, one entry a row of the last window, not a {type(rows).__name__}"
            )
        if rows is None:
            rows = torch.ones(count, dtype=torch.bool, device=self.handed_on.device)
        if rows.dtype != torch.bool or rows.shape != (count,):
            raise DniFxError(
                f"reset takes a bool tensor of shape [{count}], one entry a row of the last window, not "
                f"{rows.dtype} {list(rows.shape)}"
            )
        self.ended = rows if self.ended is None else self.ended | rows

    def origin_of(self, rows: Tensor) -> Origin:
        """Compare the rows of a state that a window begins with, (N, F), with the rows handed on."""
        before = self.handed_on
        if before is None or (before.shape, before.device) != (rows.shape, rows.device):
            nothing = torch.zeros(len(rows), 1, dtype=torch.bool, device=rows.device)
            return Origin(nothing, nothing)
        rows = rows.to(before.dtype)  # zeros may be wider than a state computed under autocast
        same = (rows == before).all(1, keepdim=True)
        ended = ~same & (rows == 0).all(1, keepdim=True)
        if self.ended is not None:
            ended |= self.ended[:, None]
        goes_on = same & ~ended
        return Origin(goes_on, goes_on | ended)

    def are_unknown(self, origin: Origin, calls: int) -> bool:
        """Whether no row had a known origin in so many calls in a row; the first window does not count.

        On a GPU only the first calls count, so that one look is enough.
        """
        self.unknown_calls += self.handed_on is not None
        if is_readable(origin.known):
            self.unknown_calls *= not origin.known.any()
            return self.unknown_calls == calls
        if self.unknown_calls <= calls:
            known = origin.known.any()
            self.ever_known = known if self.ever_known is None else self.ever_known | known
        return self.unknown_calls == calls and not self.ever_known

    def take_due(self) -> list[Target]:
        """Return the targets for the next backward pass, and keep none."""
        due, self.due = self.due, []
        return due

    def take_auxiliary(self) -> Tensor | None:
        """Return the auxiliary prediction, and drop it: its graph ends with the window."""
        auxiliary, self.auxiliary = self.auxiliary, None
        return auxiliary

    def progress(self) -> dict[str, Any]:
        """The part that a checkpoint holds, under the keys that its files have."""
        return {"rows": self.handed_on, "ended": self.ended}

    def resume(self, progress: Mapping[str, Any], device: torch.device) -> None:
        """Restore the memory from `progress`."""
        rows, ended = progress["rows"], progress["ended"]
        self.handed_on = None if rows is None else rows.to(device)
        self.ended = None if ended is None else ended.to(device)
