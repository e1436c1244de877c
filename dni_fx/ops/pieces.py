"""Both ends of a piece of a segment, whose activations the backward pass computes again."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["begin_piece", "end_piece"]


class Piece(Protocol):
    """A piece that runs forward; `runtime.pieces.RunningPiece` is the one class."""

    def end(self) -> None: ...


class Pieces(Protocol):
    """All pieces of a net; `runtime.pieces.Pieces` is the one class."""

    def begin(self, index: int, inputs: Sequence[Any], borrowed: Sequence[Any]) -> Piece | None: ...


def begin_piece(pieces: Pieces, index: int, inputs: Sequence[Any], borrowed: Sequence[Any]) -> Piece | None:
    """Begin a piece: until its end, autograd keeps nothing. None in eval mode and where grad mode is off.

    Args:
        index: The number of the piece.
        inputs: The values that the piece takes.
        borrowed: The submodules, parameters and buffers of the model that it uses.
    """
    values = (*inputs, *borrowed)
    if has_torch_function(values):
        traced: Piece | None = handle_torch_function(begin_piece, values, pieces, index, inputs, borrowed)
        return traced
    return pieces.begin(index, inputs, borrowed)


def end_piece(piece: Piece | None) -> None:
    """End a piece: from here on, autograd keeps what it needs."""
    if has_torch_function((piece,)):
        handle_torch_function(end_piece, (piece,), piece)
    elif piece is not None:
        piece.end()


torch.fx.node.has_side_effect(begin_piece)

torch.fx.node.has_side_effect(end_piece)
