"""The guided head: what it is fitted to, which labels it takes, and that nothing leaks."""

import copy
from typing import Any

import pytest
import torch
from nets import three_layers
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import dni_fx
from dni_fx.errors import ContextError, DniFxError
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.heads import GuidedHead
from dni_fx.synthesizers.registry import resolve

CPU = torch.device("cpu")
X, Y = torch.randn(12, 8), torch.arange(12) % 3


def head(
    kind: str = "guided_head", shape: tuple[int, ...] = (12, 8), axis: int = 1, loss: Any = cross_entropy
) -> GuidedHead:
    torch.manual_seed(1)
    made = resolve(kind, shape, axis, loss)[1](Activation(shape, torch.float32, CPU, axis), 3)
    assert isinstance(made, GuidedHead)
    return made


def test_it_predicts_the_gradient_of_its_own_loss() -> None:
    """Of each sample's own: the batch's mean loss, times the batch size."""
    synthesizer = head()
    h = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(synthesizer.head(h), Y), h)
    torch.testing.assert_close(synthesizer(X, Y), expected * 12)


def test_it_descends_the_weighted_sum() -> None:
    """The loss itself, and half the squared error of the per-sample gradient: batch means."""
    target = torch.randn(12, 8) / 12
    synthesizer = head("guided_head(pull=0.5)")
    twin = copy.deepcopy(synthesizer)
    predicted = synthesizer(X, Y)
    predicted.backward(predicted.detach() / 12 - target)  # as a boundary does
    h = X.clone().requires_grad_()
    loss = cross_entropy(twin.head(h), Y)
    error = 12 * torch.autograd.grad(loss, h, create_graph=True)[0] - 12 * target
    (loss + 0.5 * error.square().sum() / 24).backward()
    for got, parameter in zip(synthesizer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, parameter.grad)


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_two_forwards_of_different_batches_and_one_backward(unlock: str) -> None:
    """With a look at eval outputs in between: what a head is fitted to belongs to its own forward pass."""
    net = dni_fx.transform(
        three_layers(), X, cuts=3, classes=3, loss="cross_entropy", synthesizer="guided_head", unlock=unlock
    )
    batches = [slice(0, 12), slice(3, 8)]
    found = []
    for joint in (True, False):
        net.zero_grad()
        losses = []
        for rows in batches:
            losses.append(cross_entropy(net(X[rows], dni_context=Y[rows]), Y[rows]))
            with torch.no_grad():
                net(X, dni_context=Y)
            net.eval()
            net(X)
            net.train()
            if not joint:
                losses.pop().backward()
        if joint:
            sum(losses).backward()  # type: ignore[union-attr]
        found.append([p.grad for p in net.parameters()])
    for joint_gradient, gradient in zip(*found, strict=True):
        torch.testing.assert_close(joint_gradient, gradient)


def test_it_learns_and_is_decoupled() -> None:
    net = dni_fx.transform(three_layers(), X, cuts=3, classes=3, loss=cross_entropy, synthesizer="guided_head")
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    first = None
    for _ in range(80):
        optimizer.zero_grad()
        loss = cross_entropy(net(X, dni_context=Y), Y)
        first = float(loss.detach()) if first is None else first
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    report = dni_fx.check(net, X)
    assert report, report


def test_auto_takes_the_loss_where_a_head_learns_better() -> None:
    assert resolve("auto", (8, 6), 1, cross_entropy)[0] == resolve("auto", (8, 6), 1)[0] == "linear"
    assert resolve("auto", (8, 5, 6), 2, cross_entropy)[0] == "guided_head"
    assert resolve("auto", (8, 6, 4, 4), 1, cross_entropy)[0] == "guided_head"
    assert resolve("auto", (8, 5, 6), 2)[0] == "linear"
    assert resolve("auto", (8, 6, 4, 4), 1)[0] == "conv"


LABELS = [
    # activation, axis, labels
    ((4, 6), 1, (4,)),
    ((4, 5, 6), 2, (4,)),
    ((4, 5, 6), 2, (4, 5)),
    ((4, 6, 9), 1, (4,)),
    ((4, 6, 7, 5), 1, (4,)),
    ((4, 6, 2, 3, 4), 1, (4,)),
]


@pytest.mark.parametrize(("shape", "axis", "labels"), LABELS)
def test_labels_of_samples_and_of_positions(shape: Any, axis: int, labels: Any) -> None:
    synthesizer = head(shape=shape, axis=axis)
    predicted = synthesizer(torch.randn(shape), torch.randint(3, labels))
    assert predicted.shape == shape and predicted.any()
    predicted.backward(torch.randn(shape))
    assert any(p.grad is not None for p in synthesizer.parameters())


@pytest.mark.parametrize("labels", [(4, 7, 5), (4, 14, 10)])
def test_label_maps(labels: Any) -> None:
    synthesizer = head("guided_head(dense=True)", (4, 6, 7, 5))
    h, y = torch.randn(4, 6, 7, 5, requires_grad=True), torch.randint(3, labels)
    outputs = nn.functional.interpolate(synthesizer.head(h.movedim(1, -1)).movedim(-1, 1), labels[1:])
    (expected,) = torch.autograd.grad(cross_entropy(outputs, y), h)
    torch.testing.assert_close(synthesizer(h, y), 4 * expected)
    with pytest.raises(ContextError, match="dense=True"):
        head(shape=(4, 6, 7, 5))(torch.randn(4, 6, 7, 5), torch.randint(3, labels))


def test_a_regression() -> None:
    synthesizer = head(loss=mse_loss)
    assert synthesizer(X, torch.randn(12, 3)).any()


def test_labels_to_ignore_give_no_gradient() -> None:
    labels = torch.randint(3, (4, 5))
    labels[:, 2] = -100
    predicted = head(shape=(4, 5, 8), axis=2)(torch.randn(4, 5, 8), labels)
    assert not predicted[:, 2].any() and predicted[:, 1].any()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"loss": "cross_entropy", "synthesizer": "guided_head"}, "needs labels, a row a sample"),
    ({"loss": "cross_entropie", "classes": 3}, "torch.nn.functional has no such function"),
    ({"loss": 3, "classes": 3}, "a function of (output, labels)"),
    ({"synthesizer": "guided_head", "classes": 3}, "needs the loss and labels"),
    ({"synthesizer": "guided_head(fits=1)", "classes": 3, "loss": "cross_entropy"}, "no option 'fits'"),
    ({"synthesizer": "auto(pull=2.0)", "classes": 3, "loss": "cross_entropy"}, "auto takes no options"),
    ({"synthesizer": "guided_head(pull=1e999)", "classes": 3, "loss": "cross_entropy"}, "pull=inf"),
    ({"synthesizer": "guided_head(pull=-1.0)", "classes": 3, "loss": "cross_entropy"}, "pull=-1.0"),
    ({"synthesizer": "guided_head(hidden_size=0)", "classes": 3, "loss": "cross_entropy"}, "hidden_size=0"),
    ({"synthesizer": "guided_head(hidden_layers=0.5)", "classes": 3, "loss": "cross_entropy"}, "hidden_layers=0.5"),
    ({"synthesizer": "guided_head(pull)", "classes": 3, "loss": "cross_entropy"}, "name(option=value, ...)"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(three_layers(), X, cuts=2, **options)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_labels() -> None:
    net = dni_fx.transform(three_layers(), X, cuts=2, classes=3, loss="cross_entropy")
    for wrong in (Y + 1, torch.rand(12, 2), Y[:5], nn.functional.one_hot(Y, 3), Y.tolist()):
        with pytest.raises(ContextError):
            net(X, dni_context=wrong)


def test_labels_of_any_integer_type() -> None:
    net = dni_fx.transform(three_layers(), X, cuts=2, classes=3, loss="cross_entropy", synthesizer="guided_head")
    found = []
    for dtype in (torch.int64, torch.int32, torch.uint8):
        net.zero_grad()
        cross_entropy(net(X, dni_context=Y.to(dtype)), Y).backward()
        found.append([p.grad for p in net.parameters()])
    for gradients in zip(*found, strict=True):
        assert all(torch.equal(g, gradients[0]) for g in gradients)


def test_saved_with_its_loss(tmp_path: Any) -> None:
    head: Any = "guided_head(pull=0.25)"
    net = dni_fx.transform(three_layers(), X, cuts=2, classes=3, loss=cross_entropy, synthesizer=head)
    dni_fx.save(net, tmp_path / "net")
    again = dni_fx.load(tmp_path / "net")
    (synthesizer,) = again.dni.synthesizers.values()
    assert isinstance(synthesizer, GuidedHead) and synthesizer.pull == 0.25
    own = dni_fx.transform(three_layers(), X, cuts=2, classes=3, loss=lambda o, y: cross_entropy(o, y))
    with pytest.raises(DniFxError, match="a function of your own"):
        dni_fx.save(own, tmp_path / "own")
    assert not (tmp_path / "own").exists()
    assert dni_fx.check(own, X)
