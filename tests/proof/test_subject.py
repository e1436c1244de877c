"""The copies that a check compares: in float64, and with scripted synthesizers."""

import torch
from nets import mlp
from torch import Tensor, nn

import dni_fx
from dni_fx.model.inputs import to_inputs
from dni_fx.proof.subject import Subject, in_float64

X = to_inputs(torch.rand(5, 6), None)


def test_the_truth_is_the_gradient_of_backprop() -> None:
    subject = Subject(dni_fx.transform(mlp(), X.args, cuts=["4"]), X)
    assert subject.dtype == torch.float64 and list(subject.truth) == ["cut0__4"]
    assert subject.truth["cut0__4"].shape == (5, 8) and subject.truth["cut0__4"].any()
    for name, gradient in subject.backprop.gradients.items():
        torch.testing.assert_close(subject.through.gradients[name], gradient, msg=name)


def test_the_net_itself_stays_in_its_dtype() -> None:
    net = dni_fx.transform(mlp(), X.args, cuts=["4"])
    exact, precise, _ = in_float64(net, X)
    assert next(exact.parameters()).dtype == precise.args[0].dtype == torch.float64
    assert next(net.parameters()).dtype == X.args[0].dtype == torch.float32


def test_a_model_with_its_dtype_built_in_is_checked_as_it_is() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).float()

    net = dni_fx.transform(Fixed(), X.args, cuts=["tanh"])
    exact, precise, _ = in_float64(net, X)
    assert exact is net and precise is X
