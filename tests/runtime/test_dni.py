"""`net.dni`: optimizers that get its parameters, labels that it asks for, dtypes."""

import pytest
import torch
from nets import ResNet
from oracle import loss_of

import dni_fx
import dni_fx.ops
from dni_fx.errors import ContextError

torch.manual_seed(0)
X = torch.rand(5, 6)


def test_a_given_optimizer_gets_the_synthesizers() -> None:
    model = ResNet()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    net = dni_fx.transform(model, X, cuts=2, optimizer=opt)
    assert [set(map(id, g["params"])) for g in opt.param_groups] == [
        set(map(id, model.parameters())),
        set(map(id, net.dni.parameters())),
    ]


def test_labels_are_asked_for_while_training_only() -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2, classes=4)
    with pytest.raises(ContextError, match="dni_context"):
        net(X)
    with torch.no_grad():
        net(X)
    net.eval()(X)
    net.train()
    for labels in (torch.randint(0, 4, (5,)), torch.eye(4)[[0, 1, 2, 3, 0]], torch.full((5, 4), 0.25)):
        loss_of(net(X, dni_context=labels)).backward()
    for wrong in (torch.randint(0, 4, (6,)), torch.rand(5, 3), torch.rand(5)):
        with pytest.raises(ContextError):
            net(X, dni_context=wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_models_of_other_dtypes(dtype: torch.dtype, unlock: str) -> None:
    model, x = ResNet().to(dtype), X.to(dtype)
    net = dni_fx.transform(model, x, cuts=2, unlock=unlock, classes=4)
    assert {p.dtype for p in net.dni.parameters()} == {dtype}
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        loss_of(net(x, dni_context=torch.tensor([0, 1, 2, 3, 0]))).backward()
        opt.step()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters())
    assert all(p.isfinite().all() for p in net.parameters())
