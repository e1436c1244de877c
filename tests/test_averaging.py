"""DistributedDataParallel: two processes, each with half of the batch, train what one trains with all of it."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import dni_fx
from dni_fx import Training

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3

OPTIONS: dict[str, dict[str, Any]] = {
    "backward": {},
    "none": {"unlock": "none"},
    "stepping": {"step": "segment"},
    "warm-up": {"training": Training(warmup=2)},
    "warm-up, stepping": {"training": Training(warmup=2), "step": "segment"},
    "labels": {"classes": 3},
    "modules": {"frontend": "modules"},
}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def trained(name: str, rows: slice, wrap: bool, accumulate: bool = False) -> nn.Module:
    options = OPTIONS[name]
    torch.manual_seed(0 if rows.start is None else rows.start)  # each process begins with other parameters
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 3))
    made: Any = adam if "step" in options else None
    net = dni_fx.transform(model, X, cuts=3, optimizer=made, **options).train()
    optimizer = net.dni.optimizer or adam(net.parameters())
    runner = DistributedDataParallel(net) if wrap else net
    context = {"dni_context": Y[rows]} if "classes" in options else {}
    for step in range(4):
        if not accumulate or step % 2 == 0:
            optimizer.zero_grad()
        holding = runner.no_sync() if wrap and accumulate and step % 2 == 0 else torch.enable_grad()
        with holding:
            nn.functional.cross_entropy(runner(X[rows], **context), Y[rows]).backward()
        if not accumulate or step % 2:
            optimizer.step()
    return net


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(2):
            h = torch.tanh(self.inner(torch.cat([x, h], 1)))
        return self.head(h), h


CUT_IN_TIME: dict[str, dict[str, Any]] = {
    "time": {},
    "time and depth": {"unlock": "none", "cuts": ["inner"]},
    "time, modules": {"frontend": "modules"},
}


def in_windows(name: str, rows: slice, wrap: bool) -> list[dict[str, torch.Tensor]]:
    """Gradients of each window. The second half of the rows are another stream in the third, and end after the fourth.

    So one of two processes has a window, besides the first, in which nothing comes back.
    """
    torch.manual_seed(0)
    # Centered, two processes would take each its own mean.
    options: Any = CUT_IN_TIME[name] | {"synthesizer": "mlp", "training": dni_fx.Training(centered=False)}
    net = dni_fx.transform(Recurrent(), (X, torch.zeros(16, 8)), state=True, **options).train()
    with torch.no_grad():
        for parameter in net.dni.parameters():  # the last layer begins at zero
            parameter.copy_(torch.randn(parameter.shape))
    runner = DistributedDataParallel(net) if wrap else net
    second = (torch.arange(16) >= 8)[rows]
    found, h = [], torch.zeros(16, 8)[rows]
    for k in range(5):
        if k == 2:
            h = torch.where(second[:, None], 0.5, h)
        net.zero_grad()
        y, h = runner(X[rows].roll(k, 1), h)
        nn.functional.cross_entropy(y, Y[rows]).backward()
        found.append({key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None})
        if k == 3:
            net.dni.reset(second)
    return found


def process(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    rows = slice(8 * rank or None, 8 * (rank + 1))
    found: dict[str, Any] = {name: trained(name, rows, True).state_dict() for name in OPTIONS}
    found["accumulated"] = trained("backward", rows, True, accumulate=True).state_dict()
    found |= {name: in_windows(name, rows, True) for name in CUT_IN_TIME}
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [*OPTIONS, "accumulated"])
def test_two_processes_train_what_one_does(name: str, found: list[dict[str, Any]]) -> None:
    alone = trained("backward" if name == "accumulated" else name, slice(None), False, name == "accumulated")
    for key, value in alone.named_parameters():
        assert torch.equal(found[0][name][key], found[1][name][key]), key
        torch.testing.assert_close(found[0][name][key], value, msg=key, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CUT_IN_TIME)
def test_two_processes_go_from_window_to_window_as_one_does(name: str, found: list[dict[str, Any]]) -> None:
    for k, alone in enumerate(in_windows(name, slice(None), False)):
        one, other = (here[name][k] for here in found)
        for key, gradient in one.items():
            assert torch.equal(gradient, other[key]), key
            # Alone, the synthesizer takes no part where nothing comes back.
            wanted = alone.get(key, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, wanted, msg=f"{key}, window {k}", rtol=1e-4, atol=1e-6)
        assert any(gradient.any() for key, gradient in one.items() if key.startswith("dni.time")) == (k > 0)


def test_what_wraps_more_than_the_net_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dni_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), X, cuts=["1"]).train()
    monkeypatch.setattr("dni_fx.runtime.averaging._wrapper", lambda: DistributedDataParallel.__new__(Ignoring))
    with pytest.raises(dni_fx.DniFxError, match="must wrap the net itself"):
        net(X)


class Ignoring(DistributedDataParallel):
    parameters_to_ignore: set[str] = set()
