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


def feed_forward(**options: Any) -> Any:
    layers = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    return dni_fx.transform(nn.Sequential(*layers), X, cuts=["1", "3"], **{"verify": False} | options).train()


def moved(net: nn.Module, to: FakeTensorMode) -> Any:
    """A copy of a net on the device."""
    with FakeCopyMode(to):
        found: Any = copy.deepcopy(net)
    for tensor in (*found.parameters(), *found.buffers()):
        tensor.fake_device = torch.device(NAME, 0)
    return found


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=f"{NAME}:0")


def train(net: Any, *, in_time: bool = False) -> None:
    mode = FakeTensorMode()
    net = moved(net, mode)
    with mode:
        x, y = empty(X.shape, X.dtype), empty(Y.shape, Y.dtype)
        h = empty(X.shape, X.dtype)
        context = {"dni_context": y} if net.dni_takes_context() else {}
        optimizer = net.dni.optimizer or sgd(net.parameters())
        for _ in range(STEPS):
            optimizer.zero_grad()
            if in_time:
                outputs, h = net(x, h)
            else:
                outputs = net(x, **context)
            nn.functional.cross_entropy(outputs, y).backward()
            optimizer.step()


def looking() -> Any:
    """A net in which a hook looks at a value."""
    net = feed_forward()
    net.get_submodule("0").register_forward_hook(lambda *arguments: bool(arguments[2].any()))
    return net


def outcome(make: Any, **options: Any) -> str:
    try:
        train(make(), **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    """Print the error of each case; empty: none."""
    warnings.simplefilter("ignore")
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    found = {name: outcome(lambda o=options: feed_forward(**o)) for name, options in OPTIONS.items()}
    for name, options in IN_TIME.items():
        state = {"state": True} | options
        found[name] = outcome(lambda o=state: dni_fx.transform(Cell(), (X, X), **o).train(), in_time=True)
    found["a look"] = outcome(looking)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
