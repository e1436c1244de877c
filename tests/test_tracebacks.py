"""A traceback through generated code shows its lines: of nets, copies, saved nets, and the programs of net.dni."""

import copy
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import dni_fx
from dni_fx.runtime.flat import _compiled
from dni_fx.runtime.module import DecoupledModule

X, WRONG = torch.rand(4, 6), torch.rand(4, 7)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def traceback_of(run: Callable[..., Any], *args: Any) -> str:
    try:
        run(*args)
    except Exception:  # of any type
        return traceback.format_exc()
    raise AssertionError("no error")


def same(net: DecoupledModule) -> DecoupledModule:
    return net


def pickled(net: DecoupledModule) -> DecoupledModule:
    again: DecoupledModule = pickle.loads(pickle.dumps(net))
    return again


@pytest.mark.parametrize("again", [same, copy.deepcopy, pickled])
def test_nets(again: Callable[[DecoupledModule], DecoupledModule]) -> None:
    net = again(dni_fx.transform(Small(), X, cuts=2))
    assert "    a = self.a(x)" in traceback_of(net, WRONG)


def test_a_saved_net(tmp_path: Path) -> None:
    dni_fx.save(dni_fx.transform(Small(), X, cuts=2), tmp_path / "out")
    net = dni_fx.load(tmp_path / "out")
    assert "    a = self.a(x)" in traceback_of(net, WRONG)
    assert "    a = self.a(x)" in traceback_of(pickled(net), WRONG)


def test_the_retraced_code_of_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pickle.dumps(dni_fx.transform(Small(), X, cuts=2))
    monkeypatch.setattr(fx.Tracer, "call_module", lambda *_: 1 / 0)
    assert "    a = self.a(x)" in traceback_of(pickle.loads, text)


@pytest.mark.parametrize("again", [same, copy.deepcopy, pickled])
def test_programs_of_pieces_and_exits(again: Callable[[DecoupledModule], DecoupledModule]) -> None:
    layers = [layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.Tanh())]
    pieces: Any = again(dni_fx.transform(nn.Sequential(*layers), torch.rand(512, 6), cuts=2, inside="checkpoint"))
    exits: Any = again(dni_fx.transform(nn.Sequential(*layers), X, cuts=2, loss="cross_entropy"))
    for program in (pieces.dni.pieces.programs[0], exits.dni.exit0.program):
        first = next(line for line in program.code.splitlines() if " = " in line)
        values = [None] * len(program.graph.find_nodes(op="placeholder"))
        assert first.split(";")[0] in traceback_of(program, *values)


def test_guards() -> None:
    guard = "L['x'].shape[0] > 3"
    assert f"    {guard}" in traceback_of(lambda: eval(_compiled(guard), {"L": {}}))
