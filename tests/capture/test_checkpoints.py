"""Activation checkpointing in a model still saves memory in every segment after the rewrite."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dni_fx
from dni_fx import DniFxError
from dni_fx.bench.live_bytes import training_peak

X = torch.rand(1024, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Checkpointed by itself, or not."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.1), nn.GELU(), nn.Linear(64, 8))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        body = self.body
        return x + (body(x) if self.reentrant is None else checkpoint(body, x, use_reentrant=self.reentrant))


class FromOutside(nn.Module):
    """Checkpoints blocks that know nothing of it."""

    def __init__(self, active: bool = True) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(8, 8), nn.ModuleList(Block() for _ in range(6)), nn.Linear(8, 3)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.active else block(x)
        return self.head(x)


def stack(reentrant: bool | None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *[Block(reentrant) for _ in range(6)], nn.Linear(8, 3))


def step(net: nn.Module) -> int:
    """The peak of a training step."""
    net.train()

    def run() -> None:
        net.zero_grad()
        torch.manual_seed(1)
        net(X).square().mean().backward()

    run()
    return training_peak(run).peak


@pytest.mark.parametrize(
    ("reentrant", "unlock"),
    [
        (False, "backward"),
        (True, "none"),
        pytest.param(False, "none", marks=pytest.mark.slow),
        pytest.param(True, "backward", marks=pytest.mark.slow),
    ],
)
def test_blocks_that_checkpoint_themselves(reentrant: bool, unlock: str) -> None:
    plain, net = (dni_fx.transform(stack(r), X, cuts=["3"], unlock=unlock) for r in (None, reentrant))
    assert net.dni.plan.frontend == "fx"
    assert step(net) < 0.5 * step(plain)
    for found, wanted in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found.grad, wanted.grad)
    assert dni_fx.check(net, X)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_graph_that_loses_checkpoints_says_so(frontend: str) -> None:
    with pytest.warns(UserWarning, match="FromOutside: activation checkpointing is not in the captured graph"):
        net = dni_fx.transform(FromOutside(), X, cuts=3, frontend=frontend)
    assert dni_fx.check(net, X)


def test_blocks_that_are_checkpointed_from_outside() -> None:
    plain, net = (
        dni_fx.transform(FromOutside(active), X, cuts=["first"], frontend="modules") for active in (False, True)
    )
    assert step(net) < 0.5 * step(plain)
    with pytest.raises(DniFxError, match="let the block's own forward call checkpoint"):
        dni_fx.transform(FromOutside(), X, cuts=["blocks.1"], frontend="modules")
