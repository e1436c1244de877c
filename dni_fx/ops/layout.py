"""Where the samples are in a tensor: its batch axis, and the number of entries for each sample."""

from dataclasses import dataclass

from torch import Tensor

from dni_fx.ops.gradients import batch_size
from dni_fx.plans import CrossingTensor

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a tensor that crosses a cut.

    Attributes:
        rank: The number of axes in the example; 0: not known. A tensor with one axis fewer is one sample.
        batch: The batch axis; None: no axis follows the batch, and the whole tensor counts as one sample.
        rows: The entries of the batch axis for each sample; 0: their number varies, and each counts as a sample.
    """

    rank: int = 0
    batch: int | None = 0
    rows: int = 1

    @classmethod
    def of(cls, tensor: CrossingTensor) -> "Layout":
        return cls(len(tensor.shape), tensor.batch, tensor.rows)

    def axis(self, tensor: Tensor) -> int | None:
        """The batch axis of a tensor; None: the tensor is one sample."""
        return None if tensor.dim() == self.rank - 1 else self.batch

    def samples(self, tensor: Tensor) -> int:
        """The number of samples in a tensor."""
        return batch_size(tensor, self.axis(tensor), self.rows)

    def batch_first(self, tensor: Tensor) -> Tensor:
        """A view of a tensor with the batch as the first axis, which has one entry if the tensor is one sample."""
        axis = self.axis(tensor)
        return tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0) if axis else tensor

    def restored(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `batch_first`, for a tensor that is laid out as `like`."""
        axis = self.axis(like)
        return rows.squeeze(0) if axis is None else rows.movedim(0, axis) if axis else rows
