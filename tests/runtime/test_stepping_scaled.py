"""step="segment" and accumulate under a GradScaler: `scaler.step(optimizer)` in the loop does nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def train(accumulate: int, unlock: str, *calls: str, scale: float = 64.0) -> list[Tensor]:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net: Any = dni_fx.transform(
        model,
        X,
        cuts=["1", "3"],
        unlock=unlock,
        step="segment",
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        accumulate=accumulate,
        scaler=scaler,
    ).train()
    for step in range(6):
        net.dni.optimizer.zero_grad()
        loss = net(X + step).square().mean()
        torch.autograd.grad(loss, [net.get_parameter("4.weight")], retain_graph=True)  # no pass
        scaler.scale(loss).backward()
        for call in calls:
            getattr(scaler, call)(net.dni.optimizer)
        if step % accumulate == accumulate - 1:
            scaler.update()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_step_of_the_scaler_changes_nothing(accumulate: int, unlock: str) -> None:
    with_step, without = train(accumulate, unlock, "step"), train(accumulate, unlock)
    assert all(torch.equal(p, q) for p, q in zip(with_step, without, strict=True))


def test_gradients_that_accumulate_are_not_unscaled() -> None:
    with pytest.raises(DniFxError, match="still accumulate"):
        train(2, "backward", "unscale_", "step")
    train(1, "backward", "unscale_", "step")


def test_another_optimizer_keeps_what_the_net_was_made_with() -> None:
    scaler = torch.amp.GradScaler("cpu")
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    options: dict[str, Any] = {"cuts": ["1"], "step": "segment", "optimizer": torch.optim.Adam}
    net: Any = dni_fx.transform(model, X[:, :4], accumulate=2, scaler=scaler, verify=False, **options)
    made = dni_fx.SegmentOptimizer(net, torch.optim.Adam)
    assert (made.accumulate, made.scaler, net.dni.accumulate) == (2, scaler, 2)
    assert dni_fx.SegmentOptimizer(net, torch.optim.Adam, accumulate=3).accumulate == 3
    looped: Any = dni_fx.transform(nn.Sequential(*net.dni_original), X[:, :4], cuts=["1"], accumulate=4, scaler=scaler)
    again = dni_fx.SegmentOptimizer(looped, torch.optim.Adam)
    assert (again.accumulate, again.scaler) == (4, scaler)


def test_a_step_before_the_first_pass_trains_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net: Any = dni_fx.transform(model, X[:, :4], cuts=["1"], step="segment", optimizer=torch.optim.Adam).eval()
    before = [p.detach().clone() for p in net.parameters()]
    net(X[:, :4]).square().mean().backward()
    net.dni.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_a_rate_that_begins_at_zero() -> None:
    """It is no step of torch.distributed.checkpoint: what accumulates is not used before its time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
    options: dict[str, Any] = {"step": "segment", "optimizer": lambda p: torch.optim.Adam(p, 0.0), "accumulate": 2}
    net: Any = dni_fx.transform(model, X, cuts=["1"], **options).train()
    for k in range(2):
        net.dni.optimizer.zero_grad()
        (net(X).square().mean() / 2).backward()
        net.dni.optimizer.step()
        steps = [int(state["step"]) for own in net.dni.optimizer.optimizers for o in own for state in o.state.values()]
        assert set(steps) == (set() if k == 0 else {1})
