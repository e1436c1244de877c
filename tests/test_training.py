"""Nets learn: on small problems in seconds, and on MNIST close to backpropagation."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import Scripted, tell_truth
from torch import Tensor, nn

import dni_fx
import dni_fx.ops
from dni_fx.model.loading import load_target

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
torch.manual_seed(0)


def _mlp(pixels: int, hidden: int = 3) -> nn.Sequential:
    sizes = [pixels] + [256] * hidden
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def _fit(net: nn.Module, digits: Any, steps: int, *, labels: bool) -> float:
    """Test error in percent after the loop that people know."""
    torch.manual_seed(1)
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(digits.train_y), (128,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x, dni_context=y) if labels else net(x), y)
        loss.backward()
        opt.step()
    net.eval()
    with torch.no_grad():
        return 100 * float((net(digits.test_x).argmax(1) != digits.test_y).float().mean())


def _digits() -> Any:
    return load_target(str(EXAMPLES / "mlp.py"))[0] and __import__("common").load_digits()


@pytest.mark.slow
def test_with_labels_it_comes_within_a_point_of_backprop() -> None:
    """MNIST, 784-3x256-10, 1,000 steps of batch 128; scikit-learn's digits where there is no MNIST."""
    digits = _digits()
    torch.manual_seed(0)
    model = _mlp(digits.side**2)
    net = dni_fx.transform(_mlp(digits.side**2), digits.train_x[:64], cuts=["3", "6", "9"], classes=10)
    net.load_state_dict(model.state_dict(), strict=False)
    ours = _fit(net, digits, 1000, labels=True)
    backprop = _fit(model, digits, 1000, labels=False)
    assert ours < backprop + 1.0, (ours, backprop)
    assert min(_cosines_with_the_true_gradient(net, digits).values()) > 0.2


def _cosines_with_the_true_gradient(net: Any, digits: Any) -> dict[str, float]:
    """Of what each synthesizer predicts with what backpropagation through all that is above would send."""
    x, y = digits.train_x[:1024], digits.train_y[:1024]
    predicted: dict[str, Tensor] = {}
    for name, synthesizer in net.dni.synthesizers.items():
        synthesizer.register_forward_hook(lambda _, __, output, name=name: predicted.update({name: output.detach()}))
    net.train()(x, dni_context=y)
    exact = dni_fx.transform(dni_fx.restore(net), x, cuts=net.dni.plan, synthesizer=Scripted)
    tell_truth(exact, lambda m: m(x), loss=lambda output: nn.functional.cross_entropy(output, y))
    truth = {name: synthesizer.prediction for name, synthesizer in exact.dni.synthesizers.items()}
    return {n: float(torch.cosine_similarity(predicted[n].flatten(), truth[n].flatten(), dim=0)) for n in truth}


def test_synthesizers_learn_quickly_on_a_small_problem() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(512, 20), torch.randint(0, 3, (512,))
    x[torch.arange(512), y] += 3
    net = dni_fx.transform(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3)), x, cuts=["1"], classes=3)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(101):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x, dni_context=y), y)
        loss.backward()
        opt.step()
    (metrics,) = net.dni.metrics().values()
    assert metrics["cosine"] > 0.5 and metrics["relative_error"] < 1 and metrics["steps"] == 101
    assert loss.item() < 0.3


def test_real_digits_in_seconds() -> None:
    """scikit-learn's 8x8 digits, 300 steps, default settings: close to backprop, and it predicts the true gradient."""
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(bundled.images, dtype=torch.float32) / 16, torch.tensor(bundled.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    digits = SimpleNamespace(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
    torch.manual_seed(0)
    model = _mlp(64)
    net = dni_fx.transform(copy.deepcopy(model), digits.train_x[:64], cuts=2, classes=10)
    assert len(net.dni.plan.cuts) >= 1
    ours = _fit(net, digits, 300, labels=True)
    backprop = _fit(model, digits, 300, labels=False)
    assert ours < backprop + 3.0, (ours, backprop)
    assert min(_cosines_with_the_true_gradient(net, digits).values()) > 0.1
