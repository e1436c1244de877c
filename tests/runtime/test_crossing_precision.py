"""Autocast and GradScaler: the same training, in either unlock mode, stepping in the loop or by segments."""

import copy
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, Training

pytestmark = pytest.mark.slow

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def perceptron() -> nn.Module:
    return nets.perceptron(lambda: nn.LayerNorm(8))


class Tied(nn.Module):
    """One layer is used below and above the cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.between = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.between(self.shared(x).tanh()).tanh())


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2, eps=1e-4)


def trained(
    scaler: torch.amp.GradScaler | None, dtype: torch.dtype | None = None, steps: int = 6, **options: Any
) -> nn.Module:
    torch.manual_seed(1)
    context = {"dni_context": Y} if "classes" in options else {}
    made: Any = adam if options.get("step") == "segment" else None
    net = dni_fx.transform(perceptron(), X, cuts=3, scaler=scaler, optimizer=made, **options).train()
    optimizer: Any = net.dni.optimizer or adam(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(net(X, **context), Y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return net


@pytest.mark.parametrize("step", ["loop", "segment"])
@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training": Training(scale=1.0)},
        {"training": Training(scale="rms")},
        {"training": Training(warmup=2)},
        {"classes": 3},
        {"classes": 3, "loss": "cross_entropy", "synthesizer": "guided_head"},
    ],
    ids=str,
)
def test_a_scaler_changes_nothing(unlock: str, step: str, options: dict[str, Any]) -> None:
    options = options | {"unlock": unlock, "step": step}
    one, other = trained(None, **options), trained(torch.amp.GradScaler("cpu", init_scale=2.0**12), **options)
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=name)
    for name, measured in one.dni.metrics().items():
        assert other.dni.metrics()[name] == pytest.approx(measured, rel=1e-2, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("step", ["loop", "segment"])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_float16_with_too_large_a_scale_recovers(unlock: str, step: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    net = trained(scaler, torch.float16, steps=40, unlock=unlock, step=step)
    assert all(p.isfinite().all() for p in net.parameters())
    assert scaler.get_scale() < 2.0**30
    assert all((p != q).any() for p, q in zip(net.parameters(), perceptron().parameters(), strict=False) if p.dim() > 1)
    assert all(0 < m["target_norm"] < 10 for m in net.dni.metrics().values())  # in units of the loss as it is


def test_a_loaded_net_takes_the_scaler_of_its_optimizer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"step": "segment"}
    expected = trained(torch.amp.GradScaler("cpu", init_scale=2.0**12), **options)
    torch.manual_seed(1)
    dni_fx.save(dni_fx.transform(perceptron(), X, cuts=3), tmp_path / "net")
    net = dni_fx.load(tmp_path / "net").train()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = dni_fx.SegmentOptimizer(net, adam, scaler=scaler)
    for _ in range(6):
        scaler.scale(nn.functional.cross_entropy(net(X), Y)).backward()
        scaler.step(optimizer)
        scaler.update()
    for (name, p), (_, q) in zip(expected.named_parameters(), net.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_a_skipped_batch_needs_an_update_too() -> None:
    scaler = torch.amp.GradScaler("cpu")
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment", scaler=scaler).train()
    net(X)
    with pytest.raises(DniFxError, match="also where a batch is skipped"):
        net(X)


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_a_prediction_that_overflows_lowers_the_scale(unlock: str) -> None:
    class Large(dni_fx.Synthesizer):
        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.full_like(activation, 300.0)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=1000)
    net = trained(scaler, torch.float16, steps=20, unlock=unlock, synthesizer=Large)
    assert scaler.get_scale() < 2.0**14
    assert not torch.equal(net.get_parameter("0.weight"), perceptron().get_parameter("0.weight"))


def test_a_head_at_the_scale_that_scalers_begin_with() -> None:
    scaler = torch.amp.GradScaler("cpu", growth_interval=1000)
    net = trained(scaler, torch.float16, classes=3, loss="cross_entropy", synthesizer="guided_head", steps=1)
    assert scaler.get_scale() == 2.0**16
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.dni.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"classes": 3}], ids=str)
def test_both_unlock_modes_agree_under_autocast(dtype: torch.dtype, options: dict[str, Any]) -> None:
    one, other = (trained(None, dtype, unlock=unlock, **options) for unlock in ("none", "backward"))
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("step", ["loop", "segment"])
def test_a_shared_parameter_under_autocast(step: str) -> None:
    made: Any = adam if step == "segment" else None
    net = dni_fx.transform(Tied(), X, cuts=["tanh"], step=step, optimizer=made).train()
    before = net.shared.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(X).square().mean()
    loss.backward()
    if step == "loop":
        assert net.shared.weight.grad is not None and net.shared.weight.grad.isfinite().all()
    else:
        assert not torch.equal(before, net.shared.weight)


def test_a_backward_pass_at_a_cut_runs_without_autocast() -> None:
    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return gradient

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Watched.apply(x)  # type: ignore[no-any-return]

    seen: list[bool] = []
    model = nn.Sequential(nn.Linear(8, 8), Watching(), nn.Tanh(), nn.Linear(8, 3))
    net = dni_fx.transform(model, X, cuts=["2"], frontend="modules", verify=False).train()
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        net(X)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False]


def test_copies_have_no_scaler_and_a_check_is_not_disturbed() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, scaler=torch.amp.GradScaler("cpu"))
    copied = copy.deepcopy(net)
    assert all(crossing.loss_scale is None for crossing in copied.dni.crossings.values())
    assert dni_fx.check(net, X)
    assert all(crossing.loss_scale is not None for crossing in net.dni.crossings.values())


def test_what_excludes_a_scaler() -> None:
    with pytest.raises(DniFxError, match="leave one of the two out"):
        dni_fx.transform(perceptron(), X, scaler=torch.amp.GradScaler("cpu"), training=Training(clip=1.0))


def test_a_scaler_that_is_off_is_none_at_all() -> None:
    one, other = trained(None), trained(torch.amp.GradScaler("cpu", enabled=False))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_channels_last_stays(unlock: str) -> None:
    layers = [m for _ in range(3) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2)).to(memory_format=torch.channels_last)
    x = torch.rand(2, 4, 8, 8).to(memory_format=torch.channels_last)
    net = dni_fx.transform(model, x, cuts=["1", "3"], unlock=unlock).train()
    formats: list[bool] = []
    for name in ("2", "4"):
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    net(x).square().mean().backward()
    assert formats == [True, True]
    assert net.get_submodule("0").weight.grad.is_contiguous(memory_format=torch.channels_last)
