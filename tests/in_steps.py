"""What two processes of a pipeline see in single steps. A process imports it by its name."""

import time
from typing import Any

import torch
from in_pipeline import optimizer_of
from in_stages import X, Y, loss_of, made
from torch import Tensor, distributed, nn

import dni_fx
from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, Stage, stages


class Skip(nn.Module):
    """Its input, and a part of a weight, go from the first stage to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(8))
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        position = self.position[:8]
        h = torch.tanh(self.first(x + position))
        last: Tensor = self.last(h + position + x)
        return last


class Tied(nn.Module):
    """The first weight is the last one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.last(torch.tanh(self.mid(torch.tanh(self.first(x)))))
        return last


def schedule_of(net: Any, **options: Any) -> tuple[Stage, ScheduleDecoupled]:
    stage = stages(net)[distributed.get_rank()]
    options = {"optimizer": optimizer_of(stage), "n_microbatches": 4, "timeout": 20.0} | options
    return stage, ScheduleDecoupled(stage, loss_fn=loss_of, **options)


def received() -> list[Tensor]:
    """What the second stage, a slow one, takes, while the loop of the first one fills the buffer of its batch again."""
    torch.manual_seed(0)
    net = dni_fx.transform(Skip(), X[:2], cuts=["tanh"], synthesizer="linear", verify=False).train()
    stage, schedule = schedule_of(net)
    found: list[Tensor] = []

    def note(_stage: Any, given: Any) -> None:
        time.sleep(0.02)
        found.append(torch.cat([value.detach().flatten() for value in given]))

    stage.register_forward_pre_hook(note)
    buffer = torch.empty_like(X)
    for k in range(4):
        buffer.copy_(X + k)
        if stage.is_last:
            time.sleep(0.1)
        schedule.step(buffer, target=Y)
        buffer.fill_(float("nan"))
    schedule.close()
    return found


def in_autocast(*, cached: bool) -> dict[str, Tensor]:
    """The weights after steps in autocast, which keeps casts of weights, or does not."""
    stage, schedule = schedule_of(made("copy"))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        for _ in range(3):
            schedule.step(X, target=Y)
    schedule.close()
    return dict(stage.state_dict())


def frozen() -> float:
    """How far a frozen weight moves that an exit uses, by an optimizer with weight decay."""
    net = made("tail")
    net.get_submodule("4").requires_grad_(False)
    stage = stages(net)[distributed.get_rank()]
    optimizer = torch.optim.AdamW([*stage.parameters()], lr=0.1, weight_decay=0.5)
    before = stage.get_parameter("4.weight").detach().clone()
    schedule = ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer, sync=True)
    for _ in range(3):
        schedule.step(X, target=Y)
    schedule.close()
    return float((stage.get_parameter("4.weight") - before).abs().max())


def tied() -> Tensor:
    """A weight of both stages, of which each process has drawn its own."""
    torch.manual_seed(distributed.get_rank())
    net = dni_fx.transform(Tied(), X[:2, 0], cuts=["mid"], synthesizer="linear", verify=False).train()
    stage = stages(net)[distributed.get_rank()]
    schedule = ScheduleDecoupled(
        stage, 2, lambda output, _: output.square().mean(), optimizer=optimizer_of(stage), sync=True
    )
    for _ in range(2):
        schedule.step(X[:, 0], target=Y[:, 0])
    schedule.close()
    return stage.get_parameter("last.weight" if stage.is_last else "first.weight").detach()


def modes() -> list[bool]:
    """Whether a module that was set to eval mode, and the stage, are in train mode after an evaluation and a step."""
    stage, schedule = schedule_of(made("linear"))
    chosen = next(module for module in stage.modules() if isinstance(module, nn.LayerNorm))
    chosen.eval()
    schedule.eval(X)  # without a target: no loss
    schedule.step(X, target=Y)
    schedule.close()
    return [chosen.training, stage.training]


def summed() -> dict[str, Tensor]:
    """The gradients of one step; and of two, divided by two, which are added up without an optimizer."""
    stage, schedule = schedule_of(made("tail"), optimizer=None, sync=True)
    found = []
    for _ in range(2):
        schedule.step(X, target=Y)
        found.append({key: p.grad.clone() for key, p in stage.named_parameters() if p.grad is not None})
    schedule.close()
    return {key: value / 2 - found[0][key] for key, value in found[1].items()}


def wrong_batch() -> str:
    """The error in each process when the first stage gets a batch that is too small."""
    stage, schedule = schedule_of(made("linear"))
    try:
        schedule.step(X if stage.is_last else X[:3], target=Y)
    except DniFxError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def other_groups() -> int:
    """The steps of a pipeline, after one process has made groups that the other has not."""
    if distributed.get_rank() == 0:
        for _ in range(2):
            distributed.new_group([0], use_local_synchronization=True)
    _, schedule = schedule_of(made("unit"))
    schedule.step(X, target=Y)
    schedule.close()
    return schedule.steps


def process(rank: int) -> dict[str, Any]:
    return {
        "other groups": other_groups(),
        "received": received(),
        "autocast": [in_autocast(cached=cached) for cached in (True, False)],
        "frozen": frozen(),
        "tied": tied(),
        "modes": modes(),
        "summed": summed(),
        "wrong batch": wrong_batch(),
    }
