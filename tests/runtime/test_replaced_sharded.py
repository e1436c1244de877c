"""`fully_shard` after a rewrite: an error, or a loop that trains."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import dni_fx
from dni_fx import DniFxError, SegmentOptimizer

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def train(net: Any, optimizer: Any) -> list[torch.Tensor]:
    for _ in range(3):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    return [v.full_tensor() if hasattr(v, "full_tensor") else v for v in net.state_dict().values()]


@pytest.mark.parametrize("again", [False, True])
def test_an_optimizer_for_each_segment(mesh: DeviceMesh, again: bool) -> None:
    net: Any = dni_fx.transform(made(), X, cuts=["1", "3"], step="segment", optimizer=sgd).train()
    fully_shard(net, mesh=mesh)
    if again:
        SegmentOptimizer(net, sgd)
        train(net, net.dni.optimizer)
        return
    with pytest.raises(DniFxError, match=r"make it again after fully_shard\(net\): dni_fx\.SegmentOptimizer"):
        train(net, net.dni.optimizer)


@pytest.mark.parametrize("again", [False, True])
def test_the_optimizer_given_to_transform(mesh: DeviceMesh, again: bool) -> None:
    gc.collect()  # optimizers of other tests
    model = made()
    optimizer = sgd(model.parameters())
    net: Any = dni_fx.transform(model, X, cuts=["1", "3"], optimizer=optimizer, unlock="none").train()
    fully_shard(net, mesh=mesh)
    if again:
        train(net, sgd(net.parameters()))
        return
    with pytest.raises(DniFxError, match="no longer the one that the optimizer in optimizer= trains"):
        train(net, optimizer)


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_an_optimizer_made_after_it(mesh: DeviceMesh, unlock: str) -> None:
    nets: Any = [dni_fx.transform(made(), X, cuts=["1", "3"], unlock=unlock).train() for _ in range(2)]
    fully_shard(nets[0], mesh=mesh)
    for one, other in zip(*(train(net, sgd(net.parameters())) for net in nets), strict=True):
        torch.testing.assert_close(one, other)
