"""Marks in the user's code: where to cut."""

import itertools
from contextlib import AbstractContextManager
from typing import Any

from torch import fx
from torch.fx import traceback

__all__ = ["cut_after", "mark_of"]

_KEY = "dni_fx_cut_after"

_numbers = itertools.count()


def cut_after() -> AbstractContextManager[Any]:
    """Mark a place in forward: `with dni_fx.cut_after(): h = self.block(h)`, then `cuts="marked"`.

    The cut lies after the last operation of the block. Outside of a capture, the mark has no effect.
    """
    return traceback.annotate({_KEY: next(_numbers)})


def mark_of(node: fx.Node) -> int | None:
    """The number of the marked block that made a node; each run of a block has its own number."""
    mark: int | None = (node.meta.get("custom") or {}).get(_KEY)
    return mark
