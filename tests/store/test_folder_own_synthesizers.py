"""Synthesizers of the person's own: another process loads and checks the net, or nothing is written."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import two_layers
from torch import nn

import dni_fx
from dni_fx.errors import SourceError
from dni_fx.synthesizers import REGISTRY, adapt, register, registry

X = torch.rand(4, 8)

OWN = """
import torch
import dni_fx

class Mine(dni_fx.Synthesizer):
    def __init__(self, activation, context_size=0, hidden=3):
        super().__init__(activation, context_size)
        self.down = torch.nn.Linear(self.features + context_size, hidden)
        self.net = torch.nn.Linear(hidden, self.features)

    def forward(self, activation, context=None):
        return self.net(self.down(self.with_context(activation, context)))

    @classmethod
    def wide(cls, activation, context_size):
        return cls(activation, context_size, 5)

class Older(torch.nn.Module):
    def __init__(self, input_size, hidden_size, output_size, bias=True):
        super().__init__()
        self.net = torch.nn.Linear(input_size, output_size, bias=bias)

    def forward(self, input, hidden):
        return self.net(input), hidden

def linear(activation, context_size):  # the name of another synthesizer
    return Mine(activation, context_size, 2)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_synthesizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_synthesizers", raising=False)
    monkeypatch.setattr(registry, "REGISTRY", REGISTRY.copy())
    module: Any = __import__("own_synthesizers")
    yield module
    del sys.modules["own_synthesizers"]


def made(name: str, own: Any) -> Any:
    if name == "registered":
        register("own_mine")(own.Mine)
        return "own_mine"
    return {
        "class": own.Mine,
        "options": functools.partial(own.Mine, hidden=4),
        "method": own.Mine.wide,
        "function": own.linear,
        "adapted": adapt(own.Older, hidden_size=2, bias=False),
    }[name]


@pytest.mark.parametrize("name", ["class", "options", "method", "function", "adapted", "registered"])
def test_a_net_is_loaded_again(name: str, own: Any, tmp_path: Path) -> None:
    synthesizer = made(name, own)
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=synthesizer, verify=False)
    dni_fx.save(net, tmp_path / "out")
    if name == "registered":
        registry.REGISTRY.pop("own_mine")  # as in a new process
    again = dni_fx.load(tmp_path / "out")
    assert again.dni.plan == net.dni.plan
    (before,), (after,) = net.dni.synthesizers.values(), again.dni.synthesizers.values()
    assert type(after) is type(before) and str(after) == str(before)
    for one in (net, again):
        one(X).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), again.parameters(), strict=True))  # type: ignore[arg-type]
    dni_fx.save(again, tmp_path / "again")
    assert dni_fx.load(tmp_path / "again").dni.plan == net.dni.plan


def test_a_new_process_checks_the_folder(own: Any, tmp_path: Path) -> None:
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=own.Mine, verify=False)
    dni_fx.save(net, tmp_path / "out")
    code = "import sys; from dni_fx.cli import main; sys.argv = ['dni-fx', 'check', 'out']; main()"
    command = [sys.executable, "-P", "-c", code]  # -P: without the current folder, like the installed command
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "exact" in done.stdout, done.stdout + done.stderr


def test_what_no_process_can_import_is_refused(own: Any, tmp_path: Path) -> None:
    class Local(own.Mine):  # type: ignore[misc]
        pass

    script = type("Script", (own.Mine,), {"__module__": "__main__"})
    hidden = type("Mine", (own.Mine,), {"__module__": own.__name__})
    cases: list[tuple[Any, str]] = [
        (Local, "Local is defined in a function"),
        (script, "Script is defined in the script or notebook itself"),
        (lambda activation, size: own.Mine(activation, size), "is a lambda"),
        (hidden, "Mine is not what the module own_synthesizers holds under its name"),
        (functools.partial(own.Mine, hidden=Number(3)), "was bound to arguments that are not plain values"),
        (functools.partial(own.Mine.wide), ""),
        (adapt(type("Older", (own.Older,), {"__module__": "__main__"})), "was bound to arguments"),
    ]
    for synthesizer, reason in cases:
        net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=synthesizer, verify=False)
        if reason:
            with pytest.raises(SourceError, match=reason) as caught:
                dni_fx.save(net, tmp_path / "out")
            assert "save_checkpoint" in str(caught.value) and not (tmp_path / "out").exists()


class Number(int):
    def __repr__(self) -> str:
        return "three"


def test_a_folder_whose_module_is_gone(own: Any, tmp_path: Path) -> None:
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=own.Mine, verify=False)
    dni_fx.save(net, tmp_path / "out")
    del own.Mine
    with pytest.raises(dni_fx.DniFxError, match=r"own_synthesizers:Mine cannot be imported .*importable again"):
        dni_fx.load(tmp_path / "out")


def test_a_registered_name_that_is_another_synthesizer_now(own: Any, tmp_path: Path) -> None:
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=made("registered", own), verify=False)
    dni_fx.save(net, tmp_path / "out")
    register("own_mine")(own.linear)
    with pytest.raises(dni_fx.DniFxError, match="'own_mine' is taken by another synthesizer"):
        dni_fx.load(tmp_path / "out")


def test_a_loss_without_a_name_is_refused(tmp_path: Path) -> None:
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], classes=3, loss=lambda o, y: nn.functional.cross_entropy(o, y))
    with pytest.raises(SourceError, match="a function of your own"):
        dni_fx.save(net, tmp_path / "out")
    assert not (tmp_path / "out").exists()
