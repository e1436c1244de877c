"""The person's own loop: it learns, it isolates, and what is called in the wrong order is said so."""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import LongSkip, ResNet
from oracle import Told, loss_of, tell_truth
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import dni_fx
import dni_fx.ops
from dni_fx.errors import BackwardOrderError, ContextError, DniFxError
from dni_fx.model.loading import load_target

EXAMPLES = Path(__file__).parents[2] / "examples"
torch.manual_seed(0)
X = torch.rand(5, 6)


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
        rows = torch.randint(len(digits.train_y), (256,))
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
    """MNIST, 784-3x256-10, 2,000 steps of batch 256; scikit-learn's digits where there is no MNIST."""
    digits = _digits()
    torch.manual_seed(0)
    model = _mlp(digits.side**2)
    net = dni_fx.transform(_mlp(digits.side**2), digits.train_x[:64], cuts=["3", "6", "9"], classes=10)
    net.load_state_dict(model.state_dict(), strict=False)
    ours = _fit(net, digits, 2000, labels=True)
    backprop = _fit(model, digits, 2000, labels=False)
    assert ours < backprop + 1.0, (ours, backprop)
    assert min(_cosines_with_the_true_gradient(net, digits).values()) > 0.2


def _cosines_with_the_true_gradient(net: Any, digits: Any) -> dict[str, float]:
    """Of what each synthesizer predicts with what backpropagation through all that is above would send."""
    x, y = digits.train_x[:1024], digits.train_y[:1024]
    predicted: dict[str, Tensor] = {}
    for name, synthesizer in net.dni.synthesizers.items():
        synthesizer.register_forward_hook(lambda _, __, output, name=name: predicted.update({name: output.detach()}))
    net.train()(x, dni_context=y)
    told = dni_fx.transform(dni_fx.restore(net), x, cuts=net.dni.plan, synthesizer=Told)
    tell_truth(told, lambda m: m(x), loss=lambda output: nn.functional.cross_entropy(output, y))
    truth = {name: synthesizer.told for name, synthesizer in told.dni.synthesizers.items()}
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


# ------------------------------------------------------------------------------------------------ order
def _warmed(cuts: Any = ("tanh", "tanh_1")) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = dni_fx.transform(LongSkip(), X, cuts=list(cuts))
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


# ------------------------------------------------------------------------------------------ isolation
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_the_loss_has_no_path_of_its_own_across_a_cut(unlock: str) -> None:
    net = dni_fx.transform(ResNet(), X, cuts=["blocks.1"], unlock=unlock)
    parameters = [p for n, p in net.named_parameters() if n.startswith(("stem", "blocks.0", "blocks.1"))]
    gradients = torch.autograd.grad(loss_of(net(X)), parameters, allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


# -------------------------------------------------------------------------------------------- the rest
def test_a_given_optimizer_gets_the_synthesizers() -> None:
    model = ResNet()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    net = dni_fx.transform(model, X, cuts=2, optimizer=opt)
    assert [set(map(id, g["params"])) for g in opt.param_groups] == [
        set(map(id, model.parameters())),
        set(map(id, net.dni.parameters())),
    ]


def test_labels_are_asked_for_while_training_only() -> None:
    net = dni_fx.transform(ResNet(), X, cuts=2, classes=4)
    with pytest.raises(ContextError, match="dni_context"):
        net(X)
    with torch.no_grad():
        net(X)
    net.eval()(X)
    net.train()
    for labels in (torch.randint(0, 4, (5,)), torch.eye(4)[[0, 1, 2, 3, 0]], torch.full((5, 4), 0.25)):
        loss_of(net(X, dni_context=labels)).backward()
    for wrong in (torch.randint(0, 4, (6,)), torch.rand(5, 3), torch.rand(5)):
        with pytest.raises(ContextError):
            net(X, dni_context=wrong)


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


def test_one_graph_compiles() -> None:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh"], unlock="none", synthesizer="mlp")
    nn.init.normal_(net.dni.get_parameter("cut0_tanh.synthesizer.net.2.weight"))
    found = []
    for run in (net, torch.compile(net, backend="eager", fullgraph=True)):
        net.zero_grad()
        loss_of(run(X)).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient)


class _KeepsCrossings(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name.startswith("dni.") or super().is_leaf_module(m, module_qualified_name)


def _same_gradients(net: nn.Module, others: list[nn.Module]) -> None:
    found = []
    for run in (net, *others):
        run.zero_grad()
        loss_of(run(X)).backward()
        found.append({n: p.grad.clone() for n, p in run.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert any(name.startswith("dni.") for name in other)
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient)


def _random(unlock: str) -> Any:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh", "tanh_1"], unlock=unlock)
    for parameter in net.dni.parameters():
        nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_the_boundaries_survive_another_trace(unlock: str) -> None:
    net = _random(unlock)
    again = fx.GraphModule(net, _KeepsCrossings().trace(net))
    _same_gradients(net, [again])
    own = [n.target for n in again.graph.nodes if n.target in (dni_fx.ops.decouple, dni_fx.ops.inject)]
    assert own == [n.target for n in net.graph.nodes if n.target in (dni_fx.ops.decouple, dni_fx.ops.inject)]
    assert own


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch.export's own
def test_one_graph_exports() -> None:
    net = _random("none")
    _same_gradients(net, [torch.export.export(net, (X,), strict=False).module()])


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_models_of_other_dtypes(dtype: torch.dtype, unlock: str) -> None:
    model, x = ResNet().to(dtype), X.to(dtype)
    net = dni_fx.transform(model, x, cuts=2, unlock=unlock, classes=4)
    assert {p.dtype for p in net.dni.parameters()} == {dtype}
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        loss_of(net(x, dni_context=torch.tensor([0, 1, 2, 3, 0]))).backward()
        opt.step()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters())
    assert all(p.isfinite().all() for p in net.parameters())


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


def test_real_digits_in_seconds() -> None:
    """scikit-learn's 8x8 digits, 300 steps, default settings: close to backprop, and it predicts the true gradient."""
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(bundled.images, dtype=torch.float32) / 16, torch.tensor(bundled.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    digits = SimpleNamespace(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
    torch.manual_seed(0)
    model = _mlp(64)
    net = dni_fx.transform(copy.deepcopy(model), digits.train_x[:64], classes=10)
    assert len(net.dni.plan.cuts) >= 1
    ours = _fit(net, digits, 300, labels=True)
    backprop = _fit(model, digits, 300, labels=False)
    assert ours < backprop + 3.0, (ours, backprop)
    assert min(_cosines_with_the_true_gradient(net, digits).values()) > 0.1


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
