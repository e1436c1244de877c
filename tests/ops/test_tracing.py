"""Tracers: each traces a net in eval mode; in train mode it does, or raises one clear error."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import dni_fx
from dni_fx import DniFxError
from dni_fx.ops import TRACED

X = torch.rand(4, 8)
TRACERS: dict[str, Callable[[Any], Any]] = {
    "jit.trace": lambda net: torch.jit.trace(net, (X,)),
    "jit.script": torch.jit.script,
    "export": lambda net: torch.export.export(net, (X,)).module(),
    "symbolic_trace": torch.fx.symbolic_trace,
    "make_fx": lambda net: make_fx(net)(X),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "unlock none": {"unlock": "none"},
    "exit": {"synthesizer": "exit", "loss": nn.functional.mse_loss},
}


def made(frontend: str = "fx", **options: Any) -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)]
    return dni_fx.transform(nn.Sequential(*layers), X, cuts=["1"], frontend=frontend, verify=False, **options)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        yield


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tracer", TRACERS)
def test_in_train_mode(tracer: str, options: str) -> None:
    """An autoencoder's exit needs no target."""
    net = made(**OPTIONS[options]).train()
    if (tracer, options) == ("export", "unlock none"):
        assert TRACERS[tracer](net)(X).shape == X.shape
        return
    with pytest.raises(DniFxError) as found:
        TRACERS[tracer](net)
    assert str(found.value).startswith(TRACED)  # torch.export adds a line


@pytest.mark.parametrize("frontend", ["export", "modules"])
@pytest.mark.parametrize("tracer", ["jit.trace", "jit.script", "export", "make_fx"])
def test_other_front_ends(tracer: str, frontend: str) -> None:
    with pytest.raises(DniFxError) as found:
        TRACERS[tracer](made(frontend).train())
    assert str(found.value).startswith(TRACED)  # torch.export adds a line


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("frontend", ["export", "modules"])
def test_symbolic_trace_of_other_front_ends(frontend: str, train: bool) -> None:
    net = made(frontend).train(train)
    with pytest.raises(DniFxError, match=r"symbolic_trace finds no graph .* dni_fx\.restore\(net\)"):
        torch.fx.symbolic_trace(net)
    plain = dni_fx.restore(net)
    assert torch.equal(torch.fx.symbolic_trace(plain)(X), plain(X))


@pytest.mark.parametrize("tracer", TRACERS)
def test_in_eval_mode(tracer: str) -> None:
    net = made().eval()
    with torch.no_grad():
        net.get_submodule("0").weight.mul_(2)  # what is scripted has the weights of the net
        traced = TRACERS[tracer](net)
        torch.testing.assert_close(traced(X), net(X))


def test_a_cut_in_time() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 8)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.inner(torch.cat([x, h], 1)))
            return h, h

    net = dni_fx.transform(Cell(), (X, X), state=True).train()
    with pytest.raises(DniFxError) as found:
        torch.export.export(net, (X, X))
    assert str(found.value).startswith(TRACED)  # torch.export adds a line
