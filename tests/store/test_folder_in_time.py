"""A net with a cut in time is saved, loaded, copied, pickled, and made again from its plan."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from windows import FRONTENDS, WINDOWS, Cell, Lstm, N, Stack, T, X, cut, window

import dni_fx
from dni_fx import Training

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_a_net_with_cuts_of_both_kinds_is_checked_saved_and_loaded(unlock: str, tmp_path: Path) -> None:
    example = X[:, :T], Stack.begin()
    net = cut(Stack, cuts=["one"], unlock=unlock, classes=3)
    assert dni_fx.check(net, example)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net").train()
    assert again.dni.plan == net.dni.plan
    labels = torch.arange(N) % 3
    for one in (net, again):
        state = Stack.begin()
        for _ in range(3):
            y, state = one(X[:, :T], state, dni_context=labels)
            y.sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert len(net.dni.metrics()) == 3 and net.dni.metrics()["time1"]["steps"] == 2


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_it_is_saved_loaded_checked_and_shown(frontend: str, tmp_path: Path) -> None:
    net = cut(Lstm, frontend=frontend)
    example = (X[:, :T], Lstm.begin())
    assert dni_fx.check(net, example)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net", **({} if frontend == "fx" else {"model": Lstm()})).train()
    assert again.dni.plan == net.dni.plan
    for one in (net, again):
        state = Lstm.begin()
        for k in range(3):
            loss, state = window(one, k, state)
            loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert set(net.dni.metrics()) == {"time0"} and net.dni.metrics()["time0"]["steps"] == 2
    model = dni_fx.restore(net)
    assert isinstance(model, Lstm) and model(*example)[1][0].requires_grad
    copy.deepcopy(net)


@pytest.mark.parametrize("frontend", ["fx", pytest.param("export", marks=pytest.mark.slow), "modules"])
def test_a_plan_repeats_it(frontend: str) -> None:
    example = (X[:, :T], Lstm.begin())
    for options in ({}, {"cuts": ["lstm"], "unlock": "none"})[: 1 if frontend == "modules" else 2]:
        plan = cut(Lstm, frontend=frontend, **options).dni.plan
        again = dni_fx.transform(Lstm(), example, **(options | {"cuts": plan}))
        assert again.dni.plan.states == plan.states and len(again.dni.plan.cuts) == len(plan.cuts)
        assert dni_fx.check(again, example)


def test_a_copy_in_the_middle_of_a_run_and_a_pickled_one() -> None:
    for options in ({"training": Training(auxiliary=1.0)}, {"training": Training(horizon=2), "frontend": "export"}):
        net, state = cut(Cell, synthesizer="mlp", **options), Cell.begin()
        for k in range(3):
            loss, state = window(net, k, state)
            loss.backward()
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
        for k in range(3, 6):
            for one in (net, *copies):
                one.zero_grad()
                loss, following = window(one, k % WINDOWS, state)
                loss.backward()
            state = following
        for one in copies:
            assert one.dni.metrics()["time0"]["steps"] == net.dni.metrics()["time0"]["steps"]
            for p, q in zip(one.parameters(), net.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad))
