"""The checker: passes what is right, by every front end, and catches what is broken."""

from typing import Any

import pytest
import torch
from nets import CASES, IDS, LongSkip, ResNet
from torch import Tensor, nn

import dni_fx
from dni_fx import ops
from dni_fx.errors import DniFxError
from dni_fx.store import folder as artifact
from dni_fx.store.folder import _read_tensors
from dni_fx.synthesizers.base import Activation, Synthesizer

pytestmark = pytest.mark.slow

X = torch.rand(5, 6)


def failures(net: Any, *inputs: Tensor) -> dict[str, str]:
    return {check.name: check.figure for check in dni_fx.check(net, inputs).checks if not check.passed}


@pytest.mark.parametrize(
    ("frontend", "unlock"),
    [
        ("fx", "none"),
        ("fx", "backward"),
        pytest.param("export", "none", marks=pytest.mark.slow),
        ("export", "backward"),
        ("modules", "none"),
        pytest.param("modules", "backward", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_rewrite_is_right(case: Any, unlock: str, frontend: str) -> None:
    _, make, inputs, cuts = case
    asked = cuts if frontend == "fx" else 2
    net = dni_fx.transform(make(), inputs, cuts=asked, unlock=unlock, frontend=frontend)
    assert failures(net, *inputs) == {}


@pytest.mark.parametrize("settings", [{"classes": 4}, {"context_size": 3}, {"unlock": "none", "mix": 0.5}])
def test_other_settings(settings: dict[str, Any]) -> None:
    assert failures(dni_fx.transform(ResNet(), X, cuts=3, **settings), X) == {}


def test_nothing_is_changed() -> None:
    model = ResNet()
    net = dni_fx.transform(model, X, cuts=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(X).sum().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.eval()
    random = torch.get_rng_state()
    assert dni_fx.check(net, X)
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if "stem.1" not in name)
    assert all(torch.equal(p.grad, grads[n]) for n, p in net.named_parameters() if p.grad is not None)


@pytest.mark.parametrize(("change", "seen"), [({torch.bfloat16}, "float32"), ({torch.float64}, "float64")])
def test_other_dtypes(change: set[torch.dtype], seen: str) -> None:
    (dtype,) = change
    net = dni_fx.transform(ResNet().to(dtype), X.to(dtype), cuts=2)
    report = dni_fx.check(net, X.to(dtype))
    assert report, report


class Custom(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.scale * activation


def test_a_custom_synthesizer_is_read_back() -> None:
    report = dni_fx.check(dni_fx.transform(ResNet(), X, cuts=2, synthesizer=Custom), X)
    assert report
    assert {c.name: c.figure for c in report.checks}["save and load"] == "exact"


def _skip(net: Any) -> None:
    """A user above the cut takes the value from below it."""
    boundary = next(n for n in net.graph.nodes if n.target is ops.inject)
    following = next(iter(boundary.users))
    user = next(iter(following.users))
    user.replace_input_with(following, boundary.args[0][following.args[1]])
    net.recompile()


def _retarget(net: Any) -> None:
    """A layer is called in the place of another one."""
    nodes = [n for n in net.graph.nodes if n.op == "call_module" and n.target.endswith(".second")]
    nodes[0].target = nodes[1].target
    net.recompile()


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_a_changed_graph_is_caught(mix: float) -> None:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh_1"], unlock="none", mix=mix)
    _skip(net)
    assert {"nothing leaks through a cut", "unlock none equals backward"} <= failures(net, X).keys()
    net = dni_fx.transform(ResNet(), X, cuts=2)
    _retarget(net)
    assert {"outputs in eval mode", "outputs and gradients in train mode"} <= failures(net, X).keys()


def test_wrong_gradients_are_caught() -> None:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh_1"])
    node = next(n for n in net.graph.nodes if n.target is ops.decouple)
    outputs, detached, predictions, segment = node.args
    node.args = (outputs, detached, tuple(reversed(predictions)), segment)
    net.recompile()
    found = failures(net, X)
    assert {"true synthetic gradients give backprop's", "unlock none equals backward"} <= found.keys()


def test_a_segment_that_gets_nothing_is_caught() -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2, synthesizer=lambda *a: Custom(*a).requires_grad_(False))
    assert "does not move" in failures(net, X)["steps move what backprop moves"]


def test_a_bad_folder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2)
    real = _read_tensors
    monkeypatch.setattr(artifact, "_read_tensors", lambda path: {k: v + 1 for k, v in real(path).items()})
    assert "save and load" in failures(net, X)


def test_lost_keys_are_caught() -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2)
    net.register_buffer("strange", torch.zeros(1))
    assert "strange" in failures(net, X)["state_dict keys"]


def test_a_bug_while_saving_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2)
    monkeypatch.setattr("dni_fx.proof.properties.save", lambda *_: (_ for _ in ()).throw(DniFxError("a bug")))
    assert "a bug" in failures(net, X)["save and load"]


def test_buffers_are_compared() -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2)
    node = next(n for n in net.graph.nodes if n.target == "stem.1")
    with net.graph.inserting_after(node):
        net.graph.call_module("stem.1", node.args)
    net.recompile()
    assert "stem.1" in failures(net, X)["outputs and gradients in train mode"]
