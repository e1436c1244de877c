"""Which exits a plan gets: those asked for by name, and those that `auto` takes; and where `auto` makes no cut."""

from functools import partial
from typing import Any

import pytest
import torch
from exit_nets import NETS, Transformer
from torch import Tensor, nn
from torch.nn import functional as F
from windows import Lstm

import dni_fx
from dni_fx.errors import DniFxError, NoLegalCutError
from dni_fx.plans import Plan


class Residual(nn.Module):
    """Blocks of vectors, or of maps, each added to its input."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1) if maps else nn.Linear(6, 64)
        self.blocks = nn.ModuleList(
            nn.Conv2d(8, 8, 3, padding=1) if maps else nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU())
            for _ in range(8)
        )
        self.last = nn.Conv2d(8, 2, 1) if maps else nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def planned(model: nn.Module, x: Tensor, **options: Any) -> Plan:
    return dni_fx.plan(model, x, loss="mse_loss", **options)


def exits(plan: Plan) -> list[tuple[int | str, bool, bool]]:
    """The units of each exit, whether they are frozen, and whether it is a head."""
    found = [cut.exit for cut in plan.cuts]
    return [(one.units, one.frozen_units, bool(one.heads)) for one in found if one is not None]


def test_units_that_run_twice_are_taken_by_name() -> None:
    """Between two attention layers there is an MLP branch, so `auto` takes one."""
    case = NETS["transformer"]
    options: dict[str, Any] = {"loss": case.loss, "cuts": ["add_1"]}
    assert exits(dni_fx.plan(Transformer(32), *case.inputs, **options)) == [(1, False, False)]
    assert exits(dni_fx.plan(Transformer(32), *case.inputs, **options, synthesizer="exit(units=2)")) == [
        (2, False, False)
    ]


def test_residual_branches_that_mix_no_positions_are_no_units() -> None:
    """Such a net learns as fast without."""
    for cuts in (2, 4):
        plan = planned(Residual(maps=False), torch.rand(4, 6), cuts=cuts)
        assert exits(plan) == [(0, False, False)] * (cuts - 1)


class FirstPosition(Residual):
    """The output is of the first position alone, and nothing mixes positions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


def test_an_exit_is_found_where_no_unit_suits() -> None:
    """Where the output is of one position, the last choice of `auto` has a unit, too."""
    plan = planned(FirstPosition(maps=False), torch.rand(4, 5, 6), cuts=2)
    assert [one[1:] for one in exits(plan)] == [(False, False)]


def test_a_frozen_unit_rather_than_a_dearer_head() -> None:
    plan = planned(Residual(maps=True), torch.rand(2, 1, 8, 8), cuts=4)
    assert exits(plan) == [(1, True, False)] * 3


def test_the_units_of_one_cut_may_cost_more_than_those_of_three() -> None:
    maps = Residual(maps=True), torch.rand(2, 1, 8, 8)
    assert exits(planned(*maps, cuts=2)) == [(1, False, False)]
    assert exits(planned(*maps, cuts=4, synthesizer_share=0.5)) == [(1, False, False)] * 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "transformer",
            {"loss": lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())},
            "for the cross entropy of",
        ),
        ("own loss", {}, "exit: tokens is for the cross entropy of torch"),
        ("unet", {"loss": "cross_entropy"}, "behind one last linear layer"),
        ("transformer", {"loss": "cross_entropy", "frontend": "modules"}, "exit: tokens needs a graph"),
    ],
)
def test_tokens_are_refused_where_the_exit_cannot_choose_positions(
    name: str, options: dict[str, Any], message: str
) -> None:
    case = NETS[name]
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(case.model(), case.inputs, cuts=2, synthesizer="exit(tokens=0.5)", **options)


def test_tokens_make_the_last_layer_cheap() -> None:
    words = torch.arange(20).reshape(2, 10)
    steps = []
    for tokens in (1.0, 0.1):
        net = Transformer(16, 500)
        plan = dni_fx.transform(
            net, words, loss="cross_entropy", cuts=2, synthesizer=f"exit(units=0, tokens={tokens})", verify=False
        ).dni.plan
        assert plan.forecast is not None and plan.cuts[0].exit is not None
        steps.append((plan.forecast.cut.step / plan.forecast.backprop.step - 1, plan.cuts[0].exit.flops))
    assert steps[1][0] < 0.12 * steps[0][0] and steps[1][1] < 0.12 * steps[0][1]


class Stacked(Lstm):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = super().forward(x, state)
        return self.more(y), state


class OneLayer(Lstm):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.lstm(x, state)  # type: ignore[no-any-return]


def layers(depth: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())))


SMALL, FEW = partial(layers, 3, 4), torch.rand(5, 4)


@pytest.mark.parametrize(
    "options", [{}, {"objective": "throughput"}, {"synthesizer_share": 0.9}, {"inside": "checkpoint"}]
)
def test_auto_makes_no_cut_where_cuts_save_nothing(options: dict[str, Any]) -> None:
    why = "auto makes none, since they would save less than 5 % of memory, and of time on several devices: train with"
    why += " backprop"
    with pytest.warns(UserWarning, match=f"^the net has no cuts: {why}; a number of segments, such as 2, cuts") as seen:
        net = dni_fx.transform(SMALL(), FEW, **options)
    assert [warning.filename for warning in seen] == [__file__]
    plan = net.dni.plan
    assert not plan.cuts and len(plan.segments) == 1 and plan.why.startswith(why)
    assert dni_fx.plan(SMALL(), FEW, **options).why == plan.why
    again = dni_fx.transform(SMALL(), FEW, cuts=Plan.from_json(plan.to_json())).dni.plan  # does not warn
    assert not again.cuts and again.why == plan.why


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_a_state_that_could_be_cut_in_time_is_named(frontend: str) -> None:
    hint, x = (
        'if state is a state, state={"state": 1} (--state state=1) cuts the model in time',
        torch.rand(3, 5, 2).double(),
    )
    plan = partial(dni_fx.plan, Stacked(), (x, Lstm.begin(3)), frontend=frontend)
    assert hint in plan().why and plan(cuts=plan(cuts=2)).why.count(hint) == 1
    assert hint not in plan(state=True).why and hint not in plan(state=False).why


def test_where_no_cut_is_legal_a_state_is_named() -> None:
    with pytest.raises(NoLegalCutError, match="; if state is a state"):
        dni_fx.plan(OneLayer(), (torch.rand(3, 5, 2).double(), Lstm.begin(3)))
    with pytest.raises(NoLegalCutError, match=r"across it$"):
        dni_fx.plan(nn.Bilinear(2, 3, 4), (torch.rand(2, 2), torch.rand(2, 3)))


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize(
    "options",
    [
        {"classes": 4},
        {"loss": "cross_entropy", "synthesizer": "guided_head", "classes": 4},
        {"loss": "cross_entropy", "unlock": "none"},
        {"loss": "cross_entropy", "step": "segment", "optimizer": partial(torch.optim.SGD, lr=0.1)},
    ],
)
def test_without_cuts_the_loop_that_is_right_for_cuts_is_backprop(options: dict[str, Any], frontend: str) -> None:
    alone, labels = SMALL(), torch.arange(5) % 4
    with pytest.warns(UserWarning, match="has no cuts"):
        net = dni_fx.transform(SMALL(), FEW, frontend=frontend, **{"synthesizer": "linear"} | options)
    F.cross_entropy(alone(FEW), labels).backward()
    steps = torch.optim.SGD(alone.parameters(), 0.1), net.dni.optimizer or torch.optim.SGD(net.parameters(), 0.1)
    F.cross_entropy(net(FEW, dni_context=labels), labels).backward()
    for optimizer in steps:
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), alone.parameters(), strict=True))
    assert net.dni.metrics() == {} and (frontend == "modules" or dni_fx.check(net, FEW))


@pytest.mark.parametrize("cuts", [2, ["1"], "every:Tanh", "leaves", "plan", "auto"])
def test_cuts_that_are_asked_for_are_made_all_the_same(cuts: Any) -> None:
    options = {"memory_budget": "1MiB"} if cuts == "auto" else {}
    asked = dni_fx.plan(SMALL(), FEW, cuts=["1"]) if cuts == "plan" else cuts
    plan = dni_fx.transform(SMALL(), FEW, cuts=asked, **options).dni.plan
    assert plan.cuts and plan.forecast is not None and not plan.forecast.saves


def test_auto_cuts_where_it_saves() -> None:
    plan = dni_fx.transform(layers(12, 16), torch.rand(4096, 16)).dni.plan
    assert plan.cuts and plan.forecast is not None and plan.forecast.saves_memory
    assert plan.why.startswith("auto: optimal for memory")


def test_a_mix_needs_a_cut() -> None:
    message = "^mix is for cuts in depth, and there are none: give a number of segments, as in cuts=2$"
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(SMALL(), FEW, unlock="none", mix=0.5)
    dni_fx.transform(SMALL(), FEW, cuts=2, unlock="none", mix=0.5)
