"""A batch is split into microbatches, also of different sizes; what does not fit is refused."""

import pytest
import torch
from in_stages import X, Y, loss_of, made
from torch import Tensor, nn

import dni_fx
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
    above.outputs = [{"logits": output} for output in above.outputs]
    assert above.joined_outputs()["logits"].shape == (8, 5, 3)
    assert len(above.losses) == 3 and not sent


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        last: Tensor = self.last(torch.tanh(self.first(x)) * scale)
        return last


def test_an_argument_that_is_left_out_has_its_default() -> None:
    net = dni_fx.transform(Scaled(), (X[:2],), cuts=["tanh"], synthesizer="linear", verify=False).eval()
    values = [X]
    for stage in stages(net):
        batch = Batch(stage, 1, [X], None, {})
        batch.given = values
        batch.run(0, lambda _: None, learns_below=False)
        values = [value.detach() if isinstance(value, Tensor) else value for value in batch.passed]
    assert torch.equal(batch.outputs[0], net(X))


def test_what_does_not_fit() -> None:
    first, last = stages(made("linear"))
    with pytest.raises(DniFxError, match="a batch of 8 samples does not split into 9 microbatches"):
        Batch(first, 9, [X], None, {})
    with pytest.raises(DniFxError, match="the tensors of a batch have 8 and 20 rows"):
        Batch(stages(made("labels"))[0], 2, [X], torch.zeros(20), {})
    with pytest.raises(DniFxError, match=r"the net takes 1 arguments, and got 2: step\(x, target=y\)"):
        Batch(first, 2, [X, X], None, {})
    with pytest.raises(DniFxError, match=r"the first stage needs the arguments of the net"):
        Batch(first, 2, [], None, {})
    with pytest.raises(DniFxError, match="the net has no argument mask"):
        Batch(first, 2, [X], None, {"mask": X})
    batch = Batch(last, 1, [], Y, {}, lambda output, target: output)
    batch.given = [X]
    with pytest.raises(DniFxError, match=r"loss_fn returned <torch.Tensor of shape \[8, 5, 3\]>"):
        batch.run(0, lambda values: None, learns_below=False)
