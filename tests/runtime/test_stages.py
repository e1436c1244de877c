"""The segments of a net as modules: run one after another, and in two processes, they train what the net trains."""

import copy
from typing import Any

import pytest
import torch
from in_stages import MICROBATCHES, OPTIONS, SCHEDULES, X, Y, gradients, loss_of, made, process
from nets import NormedResidual
from processes import in_processes
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError


def run(segments: Any, *values: Tensor) -> Any:
    for segment in segments:
        result = segment(*values)
        values = result if isinstance(result, tuple) else (result,)
    return result


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("name", OPTIONS)
def test_they_train_what_the_net_trains(name: str, frontend: str) -> None:
    net = made(name, 3, frontend)
    other = copy.deepcopy(net)
    segments, takes = dni_fx.segments(other), net.dni_takes_context()
    assert len(segments) == 3
    for _ in range(2):
        outputs = net(X, **({"dni_context": Y} if takes else {}))
        again = run(segments, X, *([Y] if takes else []))
        assert torch.equal(outputs, again)
        for result in (outputs, again):
            loss_of(result, Y).backward()
    for key, gradient in gradients(net).items():
        assert torch.equal(gradient, gradients(other)[key]), key


def test_names_and_parameters_are_those_of_the_net() -> None:
    net = made("labels", 3)
    of_net, found = dict(net.named_parameters()), dict[str, nn.Parameter]()
    for segment in dni_fx.segments(net):
        for name, parameter in segment.named_parameters():
            assert parameter is of_net[name]
            found[name] = parameter
    assert found.keys() == of_net.keys()


class Skips(nn.Module):
    """A value of the first segment is used in the last; the second has none of its own arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        first = torch.tanh(self.a(x))
        second = torch.tanh(self.c(torch.tanh(self.b(first))))
        return {"y": self.d(first + second) * scale, "h": second}


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_values_that_pass_through(frontend: str) -> None:
    torch.manual_seed(0)
    example = X[:, 0], torch.rand(8, 1)
    net = dni_fx.transform(
        Skips(), example, cuts=["a", "c"], frontend=frontend, synthesizer="linear", verify=False
    ).train()
    other = copy.deepcopy(net)
    results = net(*example), run(dni_fx.segments(other), *example)
    for found in results:
        (found["y"].square().mean() + found["h"].mean()).backward()
    assert torch.equal(results[0]["y"], results[1]["y"])
    for key, gradient in gradients(net).items():
        assert torch.equal(gradient, gradients(other)[key]), key


def test_eval_mode() -> None:
    net = made("linear", 3).eval()
    segments = dni_fx.segments(net)
    assert torch.equal(run(segments, X), net(X))
    exported = dni_fx.segments(made("linear", 3, "export"))
    with pytest.raises(DniFxError, match=r"segments of a net that torch\.export has captured run in train mode alone"):
        run([segment.eval() for segment in exported], X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frontend": "modules", "cuts": 2}, "segments need a graph"),
        ({"cuts": 2, "step": "segment", "optimizer": torch.optim.Adam}, 'transform with step="loop"'),
        ({"cuts": 2, "inside": "checkpoint"}, 'transform with inside="keep"'),
    ],
)
def test_what_cannot_run_apart(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(*(NormedResidual() for _ in range(4)))
    with pytest.raises(DniFxError, match=message):
        dni_fx.segments(dni_fx.transform(model, X, verify=False, **options))


def test_a_plain_model() -> None:
    with pytest.raises(DniFxError, match=r"expected what dni_fx\.transform returned"):
        dni_fx.segments(nn.Linear(3, 3))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(process, tmp_path_factory.mktemp("stages"))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIONS)
def test_stages_of_a_pipeline(name: str, schedule: str, found: list[dict[str, Any]]) -> None:
    """Weights that both use have the sum of both gradients."""
    net = made(name)
    wanted = {}
    for k in range(2):
        for x, y in zip(X.chunk(MICROBATCHES), Y.chunk(MICROBATCHES), strict=True):
            loss_of(net(x, **({"dni_context": y} if net.dni_takes_context() else {})), y).backward()
        wanted |= {f"{k}: {key}": gradient for key, gradient in gradients(net).items()}
        net.zero_grad()
    one, other = (here[f"{name}, {schedule}"] for here in found)
    assert one.keys() | other.keys() == wanted.keys()
    for key, gradient in wanted.items():
        parts = [part[key] for part in (one, other) if key in part]
        torch.testing.assert_close(torch.stack(parts).sum(0), gradient / MICROBATCHES, msg=key, rtol=1e-6, atol=1e-7)
