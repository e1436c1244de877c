"""A model is left as it was: parameters, buffers, modes, attributes, gradients, random numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(self.drop(self.norm(x)))
        return self.c(torch.relu(self.b(torch.relu(self.last))))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("example", [X, None], ids=["given", "probed"])
def test_the_model_is_left_as_it_was(train: bool, example: Tensor | None) -> None:
    model = Everything().train(train)
    model.drop.train(not train)
    model.b.weight.grad = torch.ones(6, 6)
    model.c.bias.requires_grad_(False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]}
    flags = [m.training for m in model.modules()]
    needed = [p.requires_grad for p in model.parameters()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    rng, x = torch.get_rng_state(), X.clone()
    dni_fx.plan(model, example, cuts=2)
    net = dni_fx.transform(model, example, cuts=2)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(X, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == needed
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert model.last is None
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["b.weight"]
    assert torch.equal(model.b.weight.grad, torch.ones(6, 6))
    assert net.training == train
    assert all(m.training == train for m in net.dni.modules())
