"""Nets that are cut in time, the windows of a sequence that they train on, and what backpropagation gives."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx import Training
from dni_fx.synthesizers.base import Activation, Synthesizer

N, T, WINDOWS, H = 3, 2, 4, 4
DOUBLE = torch.float64
X = torch.randn(N, T * WINDOWS, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
Y = torch.randn(N, T * WINDOWS, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
State = Any
FRONTENDS = ["fx", "export", "modules"]
IN_DEPTH = {"unlock": "none", "cuts": 2}
WITH_CUTS = [(frontend, options) for frontend in FRONTENDS for options in ({}, {"unlock": "none"})]
WITH_CUTS += [(frontend, IN_DEPTH) for frontend in ("fx", "export")]  # the front end modules makes no such cuts beside


class Lstm(nn.Module):
    """State: two tensors (layers, N, H)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(2, H, 2, batch_first=True), nn.Linear(H, 1)
        self.double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)
        return self.head(y), state

    @staticmethod
    def begin(rows: int = N) -> State:
        return torch.zeros(2, rows, H, dtype=DOUBLE), torch.zeros(2, rows, H, dtype=DOUBLE)


class Cell(nn.Module):
    """State: one tensor (N, H), unrolled by hand; other names and order, and an output that carries no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(2 + H, H), nn.Linear(H, 1)
        self.double()

    def forward(self, hidden: Tensor, x: Tensor) -> dict[str, Tensor]:
        ys = []
        for t in range(T):
            hidden = torch.tanh(self.inner(torch.cat([x[:, t], hidden], 1)))
            ys.append(self.head(hidden))
        return {"last": hidden, "y": torch.stack(ys, 1), "signs": ys[-1].detach().sign()}

    @staticmethod
    def begin(rows: int = N) -> State:
        return torch.zeros(rows, H, dtype=DOUBLE)


def window(net: nn.Module, k: int, state: State) -> tuple[Tensor, State]:
    """Loss of the k-th window, the mean over the rows, and the state after it."""
    x, y = (t[: len(pytree.tree_leaves(state)[0].movedim(-2, 0)), k * T : (k + 1) * T] for t in (X, Y))
    if isinstance(state, tuple):
        output, after = net(x, state)
    else:
        given = net(state, x)
        output, after = given["y"], given["last"]
    return (output - y).square().sum((1, 2)).mean(), after


def cut(make: Any, **options: Any) -> nn.Module:
    model = make()
    example = (make.begin(), X[:, :T]) if make is Cell else (X[:, :T], make.begin())
    state: Any = {"hidden": "last"} if make is Cell else True
    return dni_fx.transform(model, example, state=state, **{"accumulate": 1} | options).train()


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if not n.startswith("dni.") and p.grad is not None}


def rows(state: State) -> Tensor:
    return torch.cat([t.movedim(-2, 0).flatten(1) for t in pytree.tree_leaves(state)], 1)


Table = list[tuple[Tensor, Tensor]]


def whole(make: Any) -> tuple[dict[str, Tensor], Table]:
    """Backpropagation through the whole sequence: gradients of parameters; states after each window and theirs."""
    model, state, total, states = make(), make.begin(), torch.zeros((), dtype=DOUBLE), []
    for k in range(WINDOWS):
        loss, state = window(model, k, state)
        total = total + loss
        state = pytree.tree_map(torch.clone, state)  # whose gradient is that of later windows alone
        for leaf in pytree.tree_leaves(state):
            leaf.retain_grad()
        states.append(state)
    total.backward()
    future = [pytree.tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, s) for s in states]
    return gradients(model), [(rows(s).detach(), rows(g)) for s, g in zip(states, future, strict=True)]


class Exact(Synthesizer):
    """Knows the gradient of every state; keeps the targets that come."""

    table: Table = []

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.slope = nn.Parameter(torch.zeros((), dtype=DOUBLE))
        self.targets: list[Tensor] = []

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        known = [g for h, g in self.table if h.shape == activation.shape and torch.allclose(h, activation)]
        exact = (known or [torch.zeros_like(activation)])[0] * len(activation)
        prediction = exact + self.slope * activation
        if prediction.requires_grad:
            prediction.register_hook(lambda error: self.targets.append(exact / len(activation) - error))
        return prediction


class Stack(nn.Module):
    """Two layers, each with two tensors for a state: a cut between the layers parts them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.LSTM(2, H, batch_first=True), nn.LSTM(H, H + 1, batch_first=True)
        self.head = nn.Linear(H + 1, 1)
        self.double()

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        below, above = state
        y, below = self.one(x, below)
        z, above = self.two(y, above)
        return self.head(z), (below, above)

    @staticmethod
    def begin(rows: int = N) -> State:
        return tuple(tuple(torch.zeros(1, rows, size, dtype=DOUBLE) for _ in range(2)) for size in (H, H + 1))


class Linear(nn.Module):
    """A scalar state that keeps the share `keep`, and is the output."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep, dtype=DOUBLE))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.keep * state + x
        return state, state


class Constant(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.slope = nn.Parameter(torch.ones((), dtype=DOUBLE))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.slope * torch.ones_like(activation)


class Two(nn.Module):
    """Two outputs, of which the loss takes one; the same tensor at two places; dropout; and a buffer that moves."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.norm = nn.GRUCell(2, H), nn.BatchNorm1d(H)
        self.one, self.two, self.drop = nn.Linear(H, 1), nn.Linear(H, 1), nn.Dropout(dropout)
        self.double()

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        h = self.drop(self.cell(x, h))
        y = self.one(self.drop(self.norm(h)))
        return (y, y, self.two(h)), h


def two(dropout: float = 0.0, **training: Any) -> nn.Module:
    example = X[:, 0], torch.zeros(N, H, dtype=DOUBLE)
    options: Any = {"state": True, "synthesizer": Exact, "training": Training(**training)}
    return dni_fx.transform(Two(dropout), example, **options).train()


class Memory(nn.Module):
    """Its state has three axes; and it writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(H, H)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.inner(state.mul_(0.5) + x.sum(1, keepdim=True))
        return state.sum(-1), state
