"""A batch is split into microbatches, also of different sizes; what does not fit is refused."""

import pytest
from in_stages import X, Y, loss_of, made

from dni_fx import DniFxError
from dni_fx.pipeline import stages
from dni_fx.pipeline.batch import Batch


def test_microbatches_of_different_sizes() -> None:
    first, last = stages(made("labels"))
    below, above = Batch(first, 3, [X], Y, {}), Batch(last, 3, [], Y, {}, loss_of)
    sizes, sent = [], []
    for k in range(3):
        below.run(k, sent.append, learns_below=False)
        above.given = list(sent.pop())
        above.run(k, sent.append, learns_below=True)
        sizes.append(len(above.outputs[-1]))
        (gradient,) = above.gradients()
        assert gradient is not None and gradient.shape == above.given[0].shape
    assert sizes == [3, 3, 2] and above.joined_outputs().shape == (8, 5, 3) and below.joined_outputs() is None
    assert len(above.losses) == 3 and not sent


def test_what_does_not_fit() -> None:
    first, last = stages(made("linear"))
    with pytest.raises(DniFxError, match="a batch of 8 samples does not split into 9 microbatches"):
        Batch(first, 9, [X], None, {})
    with pytest.raises(DniFxError, match=r"the first stage needs the arguments of the net"):
        Batch(first, 2, [], None, {})
    with pytest.raises(DniFxError, match="the net has no argument mask"):
        Batch(first, 2, [X], None, {"mask": X})
    batch = Batch(last, 1, [], Y, {}, lambda output, target: output)
    batch.given = [X]
    with pytest.raises(DniFxError, match=r"loss_fn returned <torch.Tensor of shape \[8, 5, 3\]>"):
        batch.run(0, lambda values: None, learns_below=False)
