"""What two processes with a segment each train, and one with the whole net. A process imports it by its name."""

from typing import Any

import torch
from nets import NormedResidual
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

import dni_fx

X = torch.rand(8, 5, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40).reshape(8, 5) % 3
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {"synthesizer": "linear"},
    "labels": {"synthesizer": "mlp", "classes": 3},
    "tail": {"synthesizer": "exit(units=0)", "loss": "cross_entropy"},
    "unit": {"synthesizer": "exit(units=1)", "loss": "cross_entropy"},
    "copy": {"synthesizer": "exit(units=1, weights='copy')", "loss": "cross_entropy"},
    "unlock none": {"synthesizer": "mlp", "unlock": "none"},
}
SCHEDULES: dict[str, Any] = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}
MICROBATCHES = 4


def made(name: str, cuts: int = 2, frontend: str = "fx") -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(*(NormedResidual() for _ in range(4)), nn.Linear(8, 3))
    return dni_fx.transform(model, X[:2], cuts=cuts, frontend=frontend, verify=False, **OPTIONS[name]).train()


def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def in_pipeline(rank: int, name: str, schedule: str) -> dict[str, Tensor]:
    """The gradients of one segment in the first step, and in the second."""
    net = made(name)
    segment = dni_fx.segments(net)[rank]
    stage = PipelineStage(segment, rank, 2, torch.device("cpu"))
    steps = SCHEDULES[schedule](stage, n_microbatches=MICROBATCHES, loss_fn=loss_of)
    found = {}
    for k in range(2):
        if rank == 0:
            steps.step(*((X, Y) if net.dni_takes_context() else (X,)))
        else:
            steps.step(target=Y)
        found |= {f"{k}: {name}": gradient for name, gradient in gradients(segment).items()}
        net.zero_grad()
    return found


def process(rank: int) -> dict[str, dict[str, Tensor]]:
    return {f"{name}, {schedule}": in_pipeline(rank, name, schedule) for name in OPTIONS for schedule in SCHEDULES}
