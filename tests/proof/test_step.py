"""One training step that can be repeated, and leaves the net as it was."""

import torch
from nets import mlp
from torch import nn

import dni_fx
from dni_fx.model.inputs import to_inputs
from dni_fx.proof.step import context_of, output_gradients, step

X = to_inputs(torch.rand(5, 6), None)


def test_a_step_changes_nothing_and_repeats() -> None:
    model = mlp().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = step(model, X), step(model, X)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert one.gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(gradient, other.gradients[name]) for name, gradient in one.gradients.items())
    assert not torch.equal(one.buffers["1.running_mean"], before["1.running_mean"])  # as after the step


def test_narrow_values_are_seen() -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()

    assert step(Autocast(), X).narrow and not step(mlp(), X).narrow


def test_gradients_for_outputs_that_carry_some() -> None:
    outputs = [torch.rand(4, 2, requires_grad=True), torch.rand(4, 2), torch.rand(4, 3, requires_grad=True)]
    trained, gradients = output_gradients(outputs, {2})
    assert len(trained) == 1 and trained[0] is outputs[0] and gradients[0].shape == (4, 2)


def test_contexts_are_made_up() -> None:
    labels = context_of(dni_fx.transform(mlp(), X.args, cuts=2, classes=3), X)
    assert labels["dni_context"].tolist() == [0, 1, 2, 0, 1]
    assert context_of(dni_fx.transform(mlp(), X.args, cuts=2), X) == {}
