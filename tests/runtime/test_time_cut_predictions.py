"""What a cut in time predicts: the scale, the mean of the batch, the auxiliary task, the fixed point."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from windows import (
    DOUBLE,
    FRONTENDS,
    Cell,
    Constant,
    H,
    Linear,
    N,
    Stack,
    T,
    X,
    cut,
    gradients,
    window,
)

import dni_fx
from dni_fx import Training
from dni_fx.synthesizers.base import Activation, centered


@pytest.mark.parametrize("synthesizer", ["linear", "least_squares(ridge=1e-9, memory=20)"])
def test_the_fixed_point_is_the_analytic_one(synthesizer: str) -> None:
    """With the sum of all outputs for a loss, dL/dh is keep + keep^2 + ...: for the mean over rows, divided by them."""
    net = dni_fx.transform(
        Linear(0.5),
        (torch.randn(8, 1, dtype=DOUBLE), torch.zeros(8, 1, dtype=DOUBLE)),
        state=True,
        synthesizer=synthesizer,
        training=Training(scale=1.0, centered=False),
    ).train()
    made = net.dni.synthesizers["time0"]
    optimizer = torch.optim.SGD(made.parameters(), 0.1) if synthesizer == "linear" else None
    state = torch.zeros(8, 1, dtype=DOUBLE)
    for _ in range(400 if optimizer is not None else 1000):
        y, state = net(torch.randn(8, 1, dtype=DOUBLE), state)
        y.mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    weight, bias = (p.item() for p in (made.parameters() if optimizer is not None else made.weight))
    assert abs(weight) < 1e-6 and abs(bias - 1.0) < 1e-6  # 0.5 / (1 - 0.5), for each sample's own loss


def test_the_auxiliary_task_reaches_the_window_before() -> None:
    """Half the squared error of the predicted next synthetic gradient, as a share of the mean squares."""
    nets = {}
    for weight in (0.0, 3.0):
        net, state = cut(Cell, synthesizer=Constant, training=Training(auxiliary=weight)), Cell.begin()
        if weight:
            with torch.no_grad():
                for parameter in net.dni.time0.auxiliary.parameters():
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        loss, state = window(net, 0, state)
        loss.backward()
        net.zero_grad()
        loss, _ = window(net, 1, state)
        loss.backward()
        nets[weight] = net
    head = copy.deepcopy(net.dni.time0.auxiliary)
    head.zero_grad()
    rows = state.detach().requires_grad_()
    prediction, following = head(rows), torch.ones(N, H, dtype=DOUBLE)
    mean_square = (following.square() + prediction.detach().square()).mean()
    (3.0 * 0.5 * (prediction - following).square().mean() / mean_square).backward()
    for own, expected in zip(net.dni.time0.auxiliary.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    slopes = [nets[weight].dni.time0.synthesizer.slope.grad for weight in (0.0, 3.0)]
    torch.testing.assert_close(slopes[0] - slopes[1], rows.grad.sum())  # its target is more by that
    assert len(gradients(nets[0.0])) == len(gradients(nets[3.0]))


@pytest.mark.parametrize("scale", [None, 0.25, 4.0])
def test_predictions_are_outputs_of_the_synthesizer_at_its_scale(scale: float | None) -> None:
    net = cut(Cell, synthesizer=Constant, training=Training(scale=scale))
    before, state = cut(Cell, synthesizer="zero"), Cell.begin()
    found = []
    for one in (net, before):
        loss, _ = window(one, 0, state)
        loss.backward()
        found.append(gradients(one)["inner.bias"])
    model = Cell()
    (model(Cell.begin(), X[:, :T])["last"].sum() / N / (scale or 1.0)).backward()
    torch.testing.assert_close(found[0] - found[1], gradients(model)["inner.bias"])


class Twice(dni_fx.Synthesizer):
    """Predicts twice the state; keeps its errors."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.errors: list[Tensor] = []
        self.slope = nn.Parameter(torch.full((), 2.0, dtype=DOUBLE))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        prediction = self.slope * activation
        if prediction.requires_grad:
            prediction.register_hook(self.errors.append)
        return prediction


@pytest.mark.parametrize("rows", [N, 1])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_centered_predictions_are_deviations_from_the_mean_of_the_batch(frontend: str, rows: int) -> None:
    found = []
    for synthesizer in (Twice, "zero"):
        net = cut(Cell, synthesizer=synthesizer, frontend=frontend, training=Training(centered=True))
        loss, state = window(net, 0, Cell.begin(rows))
        loss.backward()
        found.append(gradients(net)["inner.bias"].clone())
        if synthesizer is Twice:
            window(net, 1, state)[0].backward()
            (error,) = net.dni.synthesizers["time0"].errors
            assert error.any() and (rows == 1 or error.sum(0).abs().max() < 1e-12)
    model = Cell()
    last = model(Cell.begin(rows), X[:rows, :T])["last"]
    prediction = 2 * last.detach()
    prediction -= prediction.mean(0) if rows > 1 else 0  # of one row nothing would be left
    (last * prediction).sum().div(rows).backward()
    torch.testing.assert_close(found[0] - found[1], gradients(model)["inner.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_narrow_predictions(dtype: torch.dtype) -> None:
    """Their sum is more than float16 holds, and bfloat16 would round it."""
    rows = (1000 + torch.arange(-32.0, 32.0)[:, None]).to(dtype).repeat(16, 2)
    prediction = centered(rows)
    assert prediction.dtype == dtype
    torch.testing.assert_close(prediction.double(), rows.double() - rows.double().mean(0), rtol=1e-2, atol=1e-2)


def test_in_time_the_unit_of_targets_does_not_follow_them() -> None:
    net: Any = cut(Stack, cuts=["one"], synthesizer="mlp", training=Training(scale="rms"))
    assert [crossing.scale for crossing in net.dni.crossings.values() if crossing.in_time] == [1.0, 1.0]
    assert [crossing.scale for crossing in net.dni.crossings.values() if not crossing.in_time] == ["rms"]


def test_metrics_are_of_the_centered_predictions() -> None:
    """Deviations beside deviations, where they are centered."""
    net: Any = cut(Cell, synthesizer=Twice, training=Training(centered=True))
    _, state = window(net, 0, Cell.begin())
    assert isinstance(state, Tensor)
    loss, _ = window(net, 1, state)
    before = state.detach().requires_grad_()
    own, after = window(Cell(), 1, before)
    assert isinstance(after, Tensor)
    (truth,) = torch.autograd.grad(own + (after * centered(2 * after.detach()) / N).sum(), before)
    loss.backward()
    prediction = centered(2 * before.detach()) / N
    cosine = torch.cosine_similarity(centered(truth).flatten(), prediction.flatten(), 0)
    assert abs(net.dni.metrics()["time0"]["cosine"] - cosine.item()) < 1e-6


def test_those_chosen_by_name_are_centered() -> None:
    for synthesizer, asked, wanted in (
        ("mlp", None, True),
        ("mlp", False, False),
        ("least_squares", None, True),
        (Twice, None, False),
        (Twice, True, True),
    ):
        net: Any = cut(Cell, synthesizer=synthesizer, training=Training(centered=asked))
        assert net.dni.time0.centered is wanted


def test_least_squares_learns_whole_targets_and_predicts_deviations() -> None:
    """By itself, for errors of deviations would not tell it the rest."""
    example = torch.randn(8, 1, dtype=DOUBLE), torch.zeros(8, 1, dtype=DOUBLE)
    net: Any = dni_fx.transform(Linear(0.5), example, state=True, synthesizer="least_squares(ridge=1e-9)").train()
    state = torch.zeros(8, 1, dtype=DOUBLE)
    for _ in range(100):
        y, state = net(torch.randn(8, 1, dtype=DOUBLE), state)
        y.mean().backward()
    weight, bias = net.dni.synthesizers["time0"].weight.flatten().tolist()
    assert abs(weight) < 1e-6 and abs(bias - 0.5) < 1e-6  # the next window alone: later predictions are 0
    assert net.dni.time0.predicted(state).abs().max() < 1e-6
