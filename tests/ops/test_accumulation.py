"""Loops that accumulate the gradients of several batches."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.ops.accumulation import Accumulation, LossMeasure
from dni_fx.settings import Training

K = 4
torch.manual_seed(0)
X, Y = torch.randn(16, 8), torch.randint(0, 3, (16,))

BOTH = ["backward", "none"]

SYNTHESIZERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"synthesizer": "mlp"},
    "scaled": {"synthesizer": "linear", "training": Training(scale=1 / 16)},
    "clipped": {"synthesizer": "linear", "training": Training(clip=0.5)},
    "guided_head": {"synthesizer": "guided_head", "loss": "cross_entropy"},
}


def made(**options: Any) -> Any:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    net = dni_fx.transform(model, X, **{"cuts": ["1", "3"]} | options).train()
    torch.manual_seed(2)
    for parameter in net.dni.parameters():  # the last layer begins at zero
        nn.init.normal_(parameter, std=0.3)
    return net


def batches(k: int = K) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(X.chunk(k), Y.chunk(k), strict=True)


def loss_of(net: Any, x: Tensor, y: Tensor) -> Tensor:
    context = {"dni_context": y} if net.dni.rewrite.classes else {}
    return nn.functional.cross_entropy(net(x, **context), y)


def accumulated(net: Any, k: int, divisor: float) -> dict[str, Tensor]:
    for x, y in batches(k):
        (loss_of(net, x, y) / divisor).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("unlock", BOTH)
@pytest.mark.parametrize("options", SYNTHESIZERS.values(), ids=SYNTHESIZERS)
def test_gradients_are_those_of_one_batch(options: dict[str, Any], unlock: str) -> None:
    whole = accumulated(made(unlock=unlock, classes=3, **options), 1, 1)
    parts = accumulated(made(unlock=unlock, classes=3, accumulate=K, **options), K, K)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, msg=name)


@pytest.mark.parametrize("unlock", BOTH)
def test_with_a_scaler(unlock: str) -> None:
    whole = accumulated(made(unlock=unlock, classes=3), 1, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    net = made(unlock=unlock, classes=3, scaler=scaler, accumulate=K)
    for name, gradient in accumulated(net, K, K / 64).items():
        torch.testing.assert_close(gradient / 64, whole[name], msg=name)


@pytest.mark.parametrize("unlock", BOTH)
def test_segments_step_as_a_loop_does(unlock: str) -> None:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 1e-2)

    loop = made(unlock=unlock, classes=3, accumulate=K)
    stepping = made(unlock=unlock, classes=3, accumulate=K, optimizer=adam, step="segment")
    optimizer = adam(loop.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        for x, y in batches():
            (loss_of(loop, x, y) / K).backward()
            stepping.dni.optimizer.zero_grad()
            (loss_of(stepping, x, y) / K).backward()
        optimizer.step()
    for (name, p), q in zip(loop.named_parameters(), stepping.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("unlock", BOTH)
def test_a_divisor_that_is_measured_is_an_error_at_once(unlock: str) -> None:
    net = made(unlock=unlock, classes=3)
    with pytest.raises(DniFxError, match="accumulate=4"):
        accumulated(net, K, K)
    net = made(unlock=unlock, classes=3)
    net.dni.scale_with(accumulate=K)
    accumulated(net, K, K)


@pytest.mark.parametrize("unlock", BOTH)
def test_a_divided_loss_with_accumulate_1_is_an_error(unlock: str) -> None:
    net = made(unlock=unlock, classes=3, accumulate=1)
    with pytest.raises(DniFxError, match=r"0\.25 times the mean .*accumulate=4 in place of accumulate=1"):
        accumulated(net, K, K)


@pytest.mark.parametrize("unlock", BOTH)
@pytest.mark.parametrize("weight", [1.0, 0.7, 3.0])
def test_whole_losses_with_a_weight_and_accumulate_1(weight: float, unlock: str) -> None:
    accumulated(made(unlock=unlock, classes=3, accumulate=1), K, 1 / weight)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("unlock", BOTH)
def test_a_divisor_that_is_not_known_is_an_error_before_the_step(unlock: str, fused: bool) -> None:
    net = made(unlock=unlock)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    accumulated(net, K, K)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(DniFxError, match=r"accumulate=k .*accumulate=1 if it adds"):
        optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))
    optimizer.zero_grad()
    accumulated(net, 1, 1)
    optimizer.step()
    net.dni.scale_with(accumulate=K)
    accumulated(net, K, K)
    optimizer.step()


@pytest.mark.parametrize("unlock", BOTH)
def test_whole_losses_add_up(unlock: str) -> None:
    parts = accumulated(made(unlock=unlock, classes=3), K, 1)  # the factor is measured to be 1
    named = accumulated(made(unlock=unlock, accumulate=1), K, 1)
    whole = accumulated(made(unlock=unlock, classes=3), 1, 1)
    for name, gradient in parts.items():
        torch.testing.assert_close(gradient, K * whole[name], msg=name)
    assert named


@pytest.mark.parametrize("step", ["loop", "segment"])
def test_a_loss_that_is_not_divided_is_seen(step: str) -> None:
    made_by = torch.optim.Adam if step == "segment" else None
    net = made(classes=3, accumulate=K, step=step, optimizer=made_by)
    with pytest.raises(DniFxError, match=r"\(loss / 4\).backward\(\)"):
        accumulated(net, K, 1)


@pytest.mark.parametrize("unlock", BOTH)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_loops_that_do_not_accumulate_are_silent(fused: bool, set_to_none: bool, unlock: str) -> None:
    net = made(unlock=unlock)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=fused)
    for x, y in batches():
        optimizer.zero_grad(set_to_none)
        (loss_of(net, x, y) + loss_of(net, x + 1, y)).backward()  # two passes, one loss
        optimizer.step()
        net(x)  # for the metrics of the batch
    if unlock == "none":
        for x, y in batches():
            loss = loss_of(net, x, y)
            optimizer.zero_grad(set_to_none)
            loss.backward()
            optimizer.step()


def test_a_parameter_of_two_segments_is_no_accumulation() -> None:
    shared = nn.Linear(8, 8)
    net = dni_fx.transform(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(8, 3)), X, cuts=["1", "3"])
    for parameter in net.dni.parameters():
        nn.init.normal_(parameter, std=0.3)
    for x, y in batches():
        net.zero_grad()
        loss_of(net, x, y).backward()


def test_a_factor_near_the_divisor_is_an_undivided_loss() -> None:
    watch = Accumulation()
    watch.divisor = 4
    for factor in (0.25, 0.5, 1.0, 2.0):
        watch.measures = [measure(factor)]
        watch.check_divided()
    watch.measures = [measure(4.01, rest=0.5), measure(4.01)]
    with pytest.raises(DniFxError, match="undivided"):
        watch.check_divided()


def measure(factor: float, rest: float = 0.0) -> LossMeasure:
    return LossMeasure(torch.tensor(factor), torch.tensor(rest))


def test_copies_keep_the_divisor() -> None:
    net = copy.deepcopy(made(classes=3, accumulate=K))
    whole = accumulated(made(classes=3), 1, 1)
    for name, gradient in accumulated(net, K, K).items():
        torch.testing.assert_close(gradient, whole[name], msg=name)
