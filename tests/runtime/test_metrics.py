"""Metrics of synthesizers, and where they are logged."""

import math

import pytest
import torch
from one_cut import WITH, Half, X, gradients, target_of, transformed
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError


@pytest.mark.parametrize("unlock", WITH)
def test_metrics(unlock: str) -> None:
    net = transformed(unlock, synthesizer=Half)
    assert net.dni.metrics() == {}
    gradients(net)
    target = target_of(net) / 16
    synthetic = torch.full_like(target, 0.5 / 16)
    found = net.dni.metrics()["cut0__1"]
    expected = {
        "cosine": torch.cosine_similarity(synthetic.flatten(), target.flatten(), dim=0),
        "relative_error": (synthetic - target).norm() / target.norm(),
        "target_norm": target.norm(),
        "prediction_norm": synthetic.norm(),
        "steps": 1,
        "skipped": 0,
    }
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-4)


def test_metrics_are_nan_until_a_target_has_come_back() -> None:
    net = transformed()
    net(X)
    found = net.dni.metrics()["cut0__1"]
    assert math.isnan(found["relative_error"]) and found["steps"] == 1


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))


def test_metrics_are_logged() -> None:
    net, writer, seen = transformed(), Writer(), []
    handle = dni_fx.log_metrics(net, writer, every=2)
    dni_fx.log_metrics(net, lambda step, metrics: seen.append((step, metrics)), every=3)
    for _ in range(7):
        gradients(net)
    net.eval()
    net(X)
    assert sorted({step for _, _, step in writer.seen}) == [2, 4, 6]
    assert "dni/cut0__1/cosine" in {tag for tag, _, _ in writer.seen}
    assert [step for step, _ in seen] == [3, 6] and seen[0][1]["cut0__1"]["steps"] == 3
    assert dni_fx.check(net, X)
    handle.remove()
    net.train()
    gradients(net)
    gradients(net)
    assert max(step for _, _, step in writer.seen) == 6


@pytest.mark.parametrize("unlock", WITH)
def test_metrics_are_logged_after_the_backward_pass_of_their_step(unlock: str) -> None:
    net, seen = transformed(unlock), []
    dni_fx.log_metrics(net, lambda step, metrics: seen.append((step, metrics)), every=1)
    loss = net(X).square().mean()
    assert not seen
    loss.backward(retain_graph=unlock == "none")
    assert [step for step, _ in seen] == [1] and not math.isnan(seen[0][1]["cut0__1"]["cosine"])
    if unlock == "none":
        loss.backward()  # a second one is no second step
    assert len(seen) == 1
    with torch.no_grad():
        net(X)
    net.eval()(X).sum().backward()
    assert len(seen) == 1


def test_logging_says_what_is_wrong() -> None:
    with pytest.raises(DniFxError, match="not a Linear"):
        dni_fx.log_metrics(nn.Linear(2, 2), print)  # type: ignore[arg-type]
    with pytest.raises(DniFxError, match="every=0"):
        dni_fx.log_metrics(transformed(), print, every=0)
    with pytest.raises(DniFxError, match="add_scalar"):
        dni_fx.log_metrics(transformed(), 3)  # type: ignore[arg-type]
