"""Boundaries at run time: isolation, memory, and calls in the wrong order, which are refused."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import LongSkip, ResNet
from oracle import loss_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dni_fx
import dni_fx.ops
from dni_fx.errors import BackwardOrderError, DniFxError

torch.manual_seed(0)
X = torch.rand(5, 6)


def _warmed(cuts: Any = ("tanh", "tanh_1")) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = dni_fx.transform(LongSkip(), X, cuts=list(cuts), accumulate=1)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        opt.zero_grad()
        loss_of(net(X)).backward()
        opt.step()
    return net, opt


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("cuts", [["tanh"], ["tanh", "tanh_1"], ["tanh", "tanh_1", "tanh_2"]])
def test_zero_grad_after_forward_says_what_to_move(set_to_none: bool, cuts: list[str]) -> None:
    net, opt = _warmed(cuts)
    loss = loss_of(net(X))
    opt.zero_grad(set_to_none)
    with pytest.raises(BackwardOrderError, match=r"Move zero_grad\(\) before the forward"):
        loss.backward()
    opt.zero_grad(set_to_none)
    loss_of(net(X)).backward()


def test_legal_orders_do_not_raise() -> None:
    net, opt = _warmed()
    for set_to_none in (True, False):
        opt.zero_grad(set_to_none)
        for _ in range(2):  # micro-batches
            loss_of(net(X)).backward()
        opt.step()
        opt.zero_grad(set_to_none)
        (loss_of(net(X)) + loss_of(net(X + 1))).backward()  # two forwards, one backward
        opt.step()
        opt.zero_grad(set_to_none)


def test_two_forwards_and_one_backward_add_up() -> None:
    net, _ = _warmed()
    found = []
    for joint in (True, False):
        net.zero_grad()
        losses = [loss_of(net(X)), loss_of(net(X + 1))] if joint else []
        if joint:
            sum(losses).backward()  # type: ignore[union-attr]
        else:
            loss_of(net(X)).backward()
            loss_of(net(X + 1)).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_a_forward_without_backward_leaves_nothing(unlock: str) -> None:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh", "tanh_1"], unlock=unlock)
    nn.init.normal_(net.dni.get_parameter("cut0_tanh.synthesizer.net.0.weight"))

    def step() -> dict[str, Tensor]:
        net.zero_grad()
        loss_of(net(X)).backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    expected = step()
    kept: list[weakref.ref[Tensor]] = []
    handle = net.a.register_forward_hook(lambda _, __, output: kept.append(weakref.ref(output)))
    net(X + 3)
    handle.remove()
    gc.collect()
    assert kept[0]() is None  # no graph is held
    found = step()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)


def test_the_segment_below_is_freed_during_forward() -> None:
    """What unlock="backward" is for: activations below a cut are gone before the segment above has run."""
    alive: dict[str, bool] = {}
    for unlock in ("none", "backward"):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        net = dni_fx.transform(model, X, cuts=["3"], unlock=unlock)
        inner: list[weakref.ref[Tensor]] = []
        model[1].register_forward_hook(lambda _, __, output, inner=inner: inner.append(weakref.ref(output)))
        model[4].register_forward_hook(lambda *_, u=unlock, i=inner: alive.update({u: i[-1]() is not None}))
        net(X)
    assert alive == {"none": True, "backward": False}


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_the_loss_has_no_path_of_its_own_across_a_cut(unlock: str) -> None:
    net = dni_fx.transform(ResNet(), X, cuts=["blocks.1"], unlock=unlock)
    parameters = [p for n, p in net.named_parameters() if n.startswith(("stem", "blocks.0", "blocks.1"))]
    gradients = torch.autograd.grad(loss_of(net(X)), parameters, allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


@pytest.mark.parametrize("change", [lambda n: n.to(torch.float64), lambda n: n.to(torch.bfloat16)])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_other_dtypes(change: Callable[[Any], Any], unlock: str) -> None:
    net = change(dni_fx.transform(LongSkip(), X, cuts=["tanh"], unlock=unlock))
    dtype = next(net.parameters()).dtype
    loss_of(net(X.to(dtype))).backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters())


def test_autocast() -> None:
    for unlock in ("none", "backward"):
        net = dni_fx.transform(LongSkip(), X, cuts=["tanh"], unlock=unlock)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(net(X).float())
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())


def test_a_segment_frozen_afterwards() -> None:
    for unlock in ("none", "backward"):
        net = dni_fx.transform(LongSkip(), X, cuts=["tanh"], unlock=unlock)
        net.a.requires_grad_(False)
        loss_of(net(X)).backward()
        assert net.a.weight.grad is None and net.b.weight.grad is not None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_seen_after_micro_batches_too(set_to_none: bool) -> None:
    net, opt = _warmed()
    for _ in range(2):
        loss_of(net(X)).backward()
    loss = loss_of(net(X))
    opt.zero_grad(set_to_none)
    with pytest.raises(BackwardOrderError, match="zero_grad"):
        loss.backward()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_of_the_segment_below_the_last_cut_is_enough(set_to_none: bool) -> None:
    net, _ = _warmed()
    one = torch.optim.SGD(net.b.parameters(), 0.1)
    loss = loss_of(net(X))
    one.zero_grad(set_to_none)
    with pytest.raises(BackwardOrderError, match="zero_grad"):
        loss.backward()


def test_gradients_that_are_changed_but_not_erased_do_not_raise() -> None:
    net, opt = _warmed()
    loss = loss_of(net(X))
    nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], 1e-3)
    loss.backward()
    loss = loss_of(net(X))
    loss_of(net(X + 1)).backward()  # another step on the way
    loss.backward()
    opt.step()


def test_no_graph_outlives_a_step() -> None:
    """No more tensors live after twenty steps than after four, whether their loss went backward or not."""

    def live() -> int:
        gc.collect()
        return sum(type(o) is Tensor or type(o) is nn.Parameter for o in gc.get_objects())

    net, opt = _warmed()
    counts = []
    for i in range(22):
        opt.zero_grad()
        loss = loss_of(net(X))
        if i % 2:
            loss.backward()
            opt.step()
        del loss
        if i in (3, 21):
            counts.append(live())
    assert counts[1] <= counts[0]  # fewer: what other tests left behind


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def test_one_backward_pass_for_each_forward_pass() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=2).train()
    loss = net(X).sum()
    torch.autograd.grad(loss, [net.get_parameter("4.weight")], retain_graph=True)
    loss.backward(retain_graph=True)
    with pytest.raises(BackwardOrderError, match="two backward passes"):
        loss.backward()


def test_a_checkpoint_around_the_net() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=["1"]).train()
    with pytest.raises(DniFxError, match=r"inside of torch\.utils\.checkpoint"):
        checkpoint(net, X, use_reentrant=False)
    net.zero_grad()
    x = X.clone().requires_grad_()
    checkpoint(net, x, use_reentrant=True).sum().backward()
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    net(X).sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), wanted, strict=True))


def test_an_output_that_is_fed_back() -> None:
    square = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net = dni_fx.transform(square, X, cuts=["1"]).train()
    with pytest.raises(BackwardOrderError, match="from an earlier call of the net"):
        encoder = nn.Linear(6, 6)
        h = encoder(X)
        (net(h) + net(h)).sum().backward()
    net(net(X).detach()).sum().backward()
