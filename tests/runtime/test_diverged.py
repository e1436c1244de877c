"""A warning for predictions that are not finite, while the activation is."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import Training
from dni_fx.runtime.diverged import Diverged

X = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def cut(**options: Any) -> Any:
    return dni_fx.transform(made(), X, cuts=["1", "3"], **options).train()


def step(net: Any, x: Tensor = X) -> None:
    net.zero_grad()
    net(x).square().mean().backward()


@pytest.mark.parametrize("frontend", ["fx", "modules"])
@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_synthesizer_that_has_diverged(value: float, unlock: str, frontend: str) -> None:
    net = cut(unlock=unlock, frontend=frontend)
    step(net)
    name, synthesizer = list(net.dni.synthesizers.items())[-1]
    nn.init.constant_(next(synthesizer.parameters()), value)
    with pytest.warns(UserWarning, match=f"the predictions of {name} are not finite") as found:
        for _ in range(4):
            step(net)
    assert len(found) == 1


def test_in_time() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(12, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.inner(torch.cat([x, h], 1)))
            return self.head(h), h

    zeros = torch.zeros(64, 4)
    net: Any = dni_fx.transform(Recurrent(), (X, zeros), state=True, synthesizer="mlp").train()
    nn.init.constant_(next(net.dni.parameters()), float("nan"))
    h = zeros
    with pytest.warns(UserWarning, match="the predictions of time0 are not finite"):
        for _ in range(45):
            net.zero_grad()
            y, h = net(X, h)
            y.square().mean().backward()


def test_no_warning_where_the_activation_or_the_target_is_the_reason() -> None:
    net = cut()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net)
        step(net, X * float("nan"))
        step(net)
        net.zero_grad()
        (net(X).square().mean() * float("inf")).backward()  # as under a GradScaler that looks for its factor
        step(net)
        assert net.dni.metrics()["cut1__3"]["skipped"] >= 2


def test_on_a_gpu_one_step_in_many_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the segment compares nothing itself."""
    monkeypatch.setattr("dni_fx.ops.Segment.post_drop", lambda *_: None)
    monkeypatch.setattr("dni_fx.runtime.diverged.Diverged._waits", lambda *_: True)
    net = cut()
    step(net)
    nn.init.constant_(next(net.dni.synthesizers["cut1__3"].parameters()), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(17):
            step(net)
    with pytest.warns(UserWarning, match="the predictions of cut1__3 are not finite") as found:
        for _ in range(22):
            step(net)
    assert len(found) == 1 and isinstance(net.dni.watch.diverged, Diverged)


def train(training: Training) -> Tensor:
    """The last loss of a net that SGD trains at a rate at which the plain net learns."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, 20, generator=random), torch.randn(20, 5, generator=random)
    labels = (x @ weight).argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    net = dni_fx.transform(model, x, cuts=["1", "3"], classes=5, optimizer=optimizer, training=training).train()
    for step in range(100):
        rows = torch.arange(64) + 64 * (step % 8)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[rows], dni_context=labels[rows]), labels[rows])
        loss.backward()
        optimizer.step()
    return loss.detach()


def test_the_remedy_that_the_warning_names() -> None:
    with pytest.warns(UserWarning, match=r"Training\(lr=0\.01\)"):
        train(Training())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(Training(lr=0.01)).isfinite()
