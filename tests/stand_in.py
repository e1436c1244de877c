"""Training steps on a device that holds no values: every look at a value, and every mix of devices, raises an error.

A script: the device has to be registered before the first backward pass of a process.
"""

import copy
import json
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

import dni_fx
from dni_fx import Training

NAME = "npy"
X, Y = torch.rand(4, 8), torch.arange(4) % 3
STEPS = 4
FIRST = ("rewrite", "move")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.inner(torch.cat([x, h], 1)))
        return self.head(h), h


EXIT: dict[str, Any] = {"synthesizer": "exit", "loss": "cross_entropy"}
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {"synthesizer": "linear"},
    "mlp": {"synthesizer": "mlp"},
    "labels": {"synthesizer": "mlp", "classes": 3},
    "least squares": {"synthesizer": "least_squares"},
    "guided head": {"synthesizer": "guided_head", "classes": 3, "loss": "cross_entropy"},
    "lstm": {"synthesizer": "lstm"},
    "tail": EXIT | {"synthesizer": "exit(units=0)"},
    "unit": EXIT,
    "unlock none": {"synthesizer": "linear", "unlock": "none"},
    "exit, unlock none": EXIT | {"unlock": "none"},
    "warm-up": {"training": Training(warmup=2)},
    "clip": {"training": Training(clip=1.0)},
    "rms": {"training": Training(scale="rms")},
    "stepping": {"step": "segment", "optimizer": sgd},
    "accumulate": {"accumulate": 2},
    "modules": {"frontend": "modules"},
    "export": {"frontend": "export"},
    "checkpoint": {"inside": "checkpoint"},
}
IN_TIME: dict[str, dict[str, Any]] = {
    "time": {},
    "time, modules": {"frontend": "modules"},
    "time, auxiliary": {"training": Training(auxiliary=0.5)},
    "time, least squares": {"synthesizer": "least_squares"},
    "horizon": {"training": Training(horizon=3)},
}


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def rewritten(model: nn.Module, **options: Any) -> Any:
    """The net of a model, on the device of the model."""
    device = next(model.parameters()).device
    x = torch.zeros(X.shape, device=device)
    where: dict[str, Any] = {"state": True} if isinstance(model, Cell) else {"cuts": ["1", "3"]}
    inputs = (x, x) if isinstance(model, Cell) else x
    return dni_fx.transform(model, inputs, **where | options).train()


def moved(net: nn.Module, to: FakeTensorMode) -> Any:
    """A copy of a net on the device."""
    with FakeCopyMode(to):
        found: Any = copy.deepcopy(net)
    for tensor in (*found.parameters(), *found.buffers()):
        tensor.fake_device = torch.device(NAME, 0)
    return found


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=f"{NAME}:0")


def train(net: Any) -> None:
    x, y = empty(X.shape, X.dtype), empty(Y.shape, Y.dtype)
    h = empty(X.shape, X.dtype)
    context = {"dni_context": y} if net.dni_takes_context() else {}
    optimizer = net.dni.optimizer or sgd(net.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        if net.dni.plan.states:
            outputs, h = net(x, h)
        else:
            outputs = net(x, **context)
        nn.functional.cross_entropy(outputs, y).backward()
        optimizer.step()


def outcome(model: nn.Module, options: dict[str, Any], *, first: str, looks: bool = False) -> str:
    """The error of a rewrite and its training; empty: none.

    Args:
        first: What comes first: "rewrite", or "move", to the device.
        looks: A hook looks at a value.
    """
    mode = FakeTensorMode()
    try:
        if first == "rewrite":
            net = moved(rewritten(model, **options), mode)
        else:
            model = moved(model, mode)
            with mode:
                net = rewritten(model, **options)
        if looks:
            net.get_submodule("0").register_forward_hook(lambda *arguments: bool(arguments[2].any()))
        with mode:
            train(net)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    """Print the error of each case; empty: none."""
    warnings.simplefilter("ignore")
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    found = {}
    for first in FIRST:
        for cases, model in ((OPTIONS, layers()), (IN_TIME, Cell())):
            for name, options in cases.items():
                found[f"{name}, {first} first"] = outcome(copy.deepcopy(model), options, first=first)
    found["a look"] = outcome(layers(), {}, first="move", looks=True)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
