"""What two processes with half of the batch each, and one with all of it, train. A process imports it by its name."""

from typing import Any

import torch
from torch import nn
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
HELD = ("backward", "none", "stepping", "warm-up")  # also where DistributedDataParallel wraps a holder of the net


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


class Holder(nn.Module):
    """Holds a rewritten net, and has a layer of its own above it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.scale = net, nn.Linear(3, 3)
        with torch.no_grad():
            self.scale.weight.copy_(torch.eye(3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.scale(self.net(x))


def trained(name: str, rows: slice, wrap: bool, accumulate: bool = False, held: bool = False) -> nn.Module:
    options = OPTIONS[name]
    torch.manual_seed(0 if rows.start is None else rows.start)  # each process begins with other parameters
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 3))
    made: Any = adam if "step" in options else None
    net = dni_fx.transform(model, X, cuts=3, optimizer=made, accumulate=2 if accumulate else None, **options).train()
    optimizer = net.dni.optimizer or adam(net.parameters())
    runner: Any = Holder(net) if held else net
    runner = DistributedDataParallel(runner) if wrap else runner
    context = {"dni_context": Y[rows]} if "classes" in options else {}
    for step in range(4):
        if not accumulate or step % 2 == 0:
            optimizer.zero_grad()
        holding = runner.no_sync() if wrap and accumulate and step % 2 == 0 else torch.enable_grad()
        with holding:
            loss = nn.functional.cross_entropy(runner(X[rows], **context), Y[rows])
            (loss / 2 if accumulate else loss).backward()
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


def process(rank: int) -> dict[str, Any]:
    rows = slice(8 * rank or None, 8 * (rank + 1))
    found: dict[str, Any] = {name: trained(name, rows, True).state_dict() for name in OPTIONS}
    found |= {f"{name}, held": trained(name, rows, True, held=True).state_dict() for name in HELD}
    found["accumulated"] = trained("backward", rows, True, accumulate=True).state_dict()
    found |= {name: in_windows(name, rows, True) for name in CUT_IN_TIME}
    return found
