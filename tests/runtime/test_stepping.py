"""step="segment": the same training, gradients that are freed early, and the interface of an optimizer."""

import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, SegmentOptimizer, Training

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def perceptron() -> nn.Module:
    return nets.perceptron(lambda: nn.Dropout(0.1))


class Tied(nn.Module):
    """The first layer's weight is also that of the last but one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x).tanh()).tanh()).tanh())


class TiedAtTheEnd(nn.Module):
    """The last segment has no parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(self.first(x).tanh()).tanh())


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def loop_and_segment(
    make: Callable[[], nn.Module], factory: Any = adam, **options: Any
) -> tuple[tuple[nn.Module, torch.optim.Optimizer], tuple[nn.Module, torch.optim.Optimizer]]:
    """The same net with an optimizer in the loop, and with one a segment."""
    model = make()
    optimizer = factory(model.parameters())
    torch.manual_seed(1)
    looped = dni_fx.transform(model, X, optimizer=optimizer, **options).train()
    again = make()
    torch.manual_seed(1)
    stepped = dni_fx.transform(again, X, optimizer=factory, step="segment", **options).train()
    assert isinstance(stepped.dni.optimizer, SegmentOptimizer)
    return (looped, optimizer), (stepped, stepped.dni.optimizer)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, **context: Any) -> None:
    torch.manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X, **context), Y).backward()
        optimizer.step()


def assert_same(net: nn.Module, other: nn.Module) -> None:
    ours, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "options",
    [
        {"cuts": 2},
        {"cuts": "leaves"},
        {"cuts": 3, "frontend": "export"},
        {"cuts": 3, "frontend": "modules"},
        {"cuts": 3, "unlock": "none"},
        {"cuts": 3, "unlock": "none", "mix": 0.5},
        {"cuts": 3, "training": Training(lr=3.0)},
        {"cuts": 3, "training": Training(every=2)},
        {"cuts": 3, "training": Training(warmup=2)},
        {"cuts": 3, "training": Training(optimizer=sgd)},
        {"cuts": 3, "synthesizer": "zero"},
    ],
)
@pytest.mark.parametrize("factory", [adam, sgd])
def test_it_is_the_same_training(factory: Any, options: dict[str, Any]) -> None:
    if options.get("synthesizer") == "zero":
        options = options | {"synthesizer": "zero"}
    one, other = loop_and_segment(perceptron, factory, **options)
    before = [p.detach().clone() for p in other[0].parameters()]
    train(*one)
    train(*other)
    assert_same(one[0], other[0])
    assert any(not torch.equal(p, q) for p, q in zip(before, other[0].parameters(), strict=True))


@pytest.mark.parametrize("make", [Tied, TiedAtTheEnd])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_shared_parameter_waits_for_its_last_segment(make: Any, warmup: int) -> None:
    one, other = loop_and_segment(make, cuts="leaves", training=Training(warmup=warmup))
    train(*one)
    train(*other)
    assert_same(one[0], other[0])


def test_with_heads() -> None:
    one, other = loop_and_segment(perceptron, cuts=3, classes=3, loss="cross_entropy", synthesizer="guided_head")
    train(*one, dni_context=Y)
    train(*other, dni_context=Y)
    assert_same(one[0], other[0])


def test_gradients_are_freed_segment_by_segment() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment").train()
    alive: list[int] = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in net.parameters()))
        )
    loss = nn.functional.cross_entropy(net(X), Y)
    assert all(p.grad is None for p in net.parameters())
    loss.backward()
    assert all(p.grad is None for p in net.parameters())
    # The segment's own two or four, and the synthesizer's below it.
    assert max(alive) <= 6 < len(list(net.parameters()))


def test_accumulating_steps_less_often() -> None:
    model = perceptron()
    optimizer = adam(model.parameters())
    torch.manual_seed(1)
    net = dni_fx.transform(model, X, cuts=3, optimizer=optimizer, accumulate=2).train()
    torch.manual_seed(1)
    stepped = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment", accumulate=2).train()
    torch.manual_seed(2)
    for step in range(6):
        if step % 2 == 0:
            optimizer.zero_grad()
        (nn.functional.cross_entropy(net(X + step), Y) / 2).backward()
        if step % 2 == 1:
            optimizer.step()
    torch.manual_seed(2)
    for step in range(6):
        stepped.dni.optimizer.zero_grad()  # type: ignore[union-attr]
        (nn.functional.cross_entropy(stepped(X + step), Y) / 2).backward()
    assert_same(net, stepped)


def test_schedulers_and_clipping() -> None:
    def clipping(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        made = adam(held)
        made.register_step_pre_hook(lambda *_: norms.append(float(nn.utils.clip_grad_norm_(held, 0.01))))
        return made

    norms: list[float] = []
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=clipping, step="segment").train()
    optimizer = net.dni.optimizer
    assert optimizer is not None
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in range(4):
        train(net, optimizer, 1)
        scheduler.step()
    assert len(norms) == 4 * 3
    rates = {group["lr"] for inner in optimizer.optimizers for o in inner for group in o.param_groups}  # type: ignore[attr-defined]
    assert rates == {0.0025}


def test_groups_of_parameters() -> None:
    def decaying(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        groups = [{"params": [p for p in held if p.dim() > 1], "weight_decay": 0.1}]
        groups.append({"params": [p for p in held if p.dim() < 2], "weight_decay": 0.0})
        return torch.optim.AdamW(groups, 1e-2)

    one, other = loop_and_segment(perceptron, decaying, cuts=3, synthesizer="zero")
    train(*one)
    train(*other)
    assert_same(one[0], other[0])
    assert {group["weight_decay"] for group in other[1].param_groups} == {0.0, 0.1}


def test_a_run_goes_on_bit_for_bit() -> None:
    def made() -> nn.Module:
        training = Training(warmup=3, lr=2.0)
        return dni_fx.transform(
            perceptron(), X, cuts=3, optimizer=sgd, step="segment", accumulate=2, training=training
        ).train()

    whole = made()
    train(whole, whole.dni.optimizer, 5)
    assert any(p.grad is not None for p in whole.parameters())  # the fifth pass waits for the sixth
    train(whole, whole.dni.optimizer, 1)
    stored = copy.deepcopy((whole.state_dict(), whole.dni.optimizer.state_dict(), torch.get_rng_state()))
    again = made()
    again.load_state_dict(stored[0])
    again.dni.optimizer.load_state_dict(pickle.loads(pickle.dumps(stored[1])))
    for net in (whole, again):
        torch.set_rng_state(stored[2])
        for _ in range(4):
            nn.functional.cross_entropy(net(X), Y).backward()
    assert_same(whole, again)


def test_a_loaded_net_can_have_one(tmp_path: Any) -> None:
    one, other = loop_and_segment(perceptron, cuts=3)
    dni_fx.save(other[0], tmp_path / "net")
    loaded = dni_fx.load(tmp_path / "net").train()
    assert loaded.dni.optimizer is None
    train(*one)
    train(loaded, SegmentOptimizer(loaded, adam))
    assert_same(one[0], loaded)


def test_it_goes_on_after_a_backward_pass_that_failed() -> None:
    def fail(_: Tensor) -> None:
        raise ValueError("no")

    net = dni_fx.transform(perceptron(), X, cuts=["2"], optimizer=adam, step="segment").train()
    assert net.dni.optimizer is not None
    handle = net.get_parameter("3.weight").register_hook(fail)  # above it, gradients have arrived
    with pytest.raises(ValueError, match="no"):
        train(net, net.dni.optimizer, 1)
    handle.remove()
    before = net.get_parameter("12.weight").detach().clone()
    train(net, net.dni.optimizer, 1)
    assert not torch.equal(before, net.get_parameter("12.weight"))
    assert all(p.grad is None for p in net.parameters())


class Positions(nn.Module):
    """Parameters that are used outside of all layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.position, self.scale = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x + self.position).tanh()) * 2
        return self.head(h.tanh() * self.scale)


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_parameters_outside_of_layers(frontend: str) -> None:
    cuts: Any = ["a"] if frontend == "modules" else 2
    one, other = loop_and_segment(Positions, cuts=cuts, frontend=frontend)
    train(*one)
    train(*other)
    assert_same(one[0], other[0])


class Taken(nn.Module):
    """A layer's weight is used a second time, by the root itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).tanh()).tanh()
        return self.head(nn.functional.linear(h, self.a.weight))


def test_a_gradient_that_comes_too_late_is_no_silent_one() -> None:
    net = dni_fx.transform(Taken(), X, cuts=["a"], frontend="modules", optimizer=adam, step="segment").train()
    with pytest.raises(DniFxError, match=r"gradient came to a\.weight after its segment"):
        nn.functional.cross_entropy(net(X), Y).backward()
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment").train()
    with pytest.raises(DniFxError, match="weight_decay"):
        (nn.functional.cross_entropy(net(X), Y) + sum(p.square().sum() for p in net.parameters())).backward()
    assert all(p.grad is None for p in net.parameters())
    assert net.dni.optimizer is not None
    train(net, net.dni.optimizer)


def test_only_the_net_in_train_mode_steps() -> None:
    model = perceptron()
    net = dni_fx.transform(model, X, cuts=3, optimizer=adam, step="segment").train()
    before = copy.deepcopy(net.state_dict())

    def unchanged() -> bool:
        return all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    net.eval()
    net(X).sum().backward()
    assert unchanged() and all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    dni_fx.plan(model, X, cuts=2, profile=True)
    again = dni_fx.transform(model, X, cuts=2)
    assert unchanged()
    again.train()(X).sum().backward()
    assert unchanged()
    net.train()
    plain = dni_fx.restore(net).train()
    plain(X).sum().backward()
    net(X).sum().backward()
    assert net.dni.optimizer is None and unchanged()


def test_another_optimizer_takes_the_place_of_the_first() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment").train()
    before = copy.deepcopy(net.state_dict())
    still = SegmentOptimizer(net, lambda parameters: torch.optim.SGD(parameters, 0.0))
    train(net, still)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_two_passes_before_one_backward_pass_with_accumulation() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment", accumulate=2).train()
    for _ in range(3):
        (net(X) - net(X + 1)).square().mean().backward()


def test_a_scheduler_that_looks_at_defaults() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment").train()
    assert net.dni.optimizer is not None
    scheduler = torch.optim.lr_scheduler.OneCycleLR(net.dni.optimizer, 0.1, total_steps=10)
    train(net, net.dni.optimizer, 1)
    scheduler.step()


def test_optimizers_step_without_autocast() -> None:
    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append(torch.is_autocast_enabled("cpu"))

    seen: list[bool] = []
    made: Any = lambda parameters: Watched(parameters, 0.1)  # noqa: E731
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=made, step="segment").train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(X).square().mean()
    loss.backward()
    assert seen == [False] * 3


def test_a_pickle_has_none_and_a_check_changes_nothing() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment")
    copied = pickle.loads(pickle.dumps(net))
    assert copied.dni.optimizer is None
    before = copy.deepcopy(net.state_dict())
    assert dni_fx.check(net, X)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.warns(UserWarning, match="no optimizer trains this copy"):
        nn.functional.cross_entropy(copied.train()(X), Y).backward()
    assert all(p.grad is not None for p in copied.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "segment"}, "a function from parameters"),
        ({"step": "segment", "optimizer": torch.optim.SGD(perceptron().parameters(), 0.1)}, "a function from"),
        ({"step": "segment", "optimizer": lambda p: None}, "made a NoneType"),
        ({"step": "segment", "optimizer": adam, "accumulate": 0}, "accumulate=0"),
        ({"step": "often"}, "there are loop, segment"),
        ({"optimizer": adam}, "needs step='segment'"),
        ({"accumulate": 0.5}, "accumulate=0.5"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(perceptron(), X, cuts=2, **options)


def test_a_closure_runs_once() -> None:
    """Trainers let the optimizer run the net."""
    model = nets.perceptron(lambda: nn.LayerNorm(8))
    ways = [copy.deepcopy(model), model]
    cut = [dni_fx.transform(one, X, cuts=3, optimizer=adam, step="segment").train() for one in ways]
    cut[1].dni.load_state_dict(cut[0].dni.state_dict())
    runs = []

    def closure(net: Any) -> Tensor:
        runs.append(net)
        net.dni.optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        with torch.no_grad():
            losses = cut[0].dni.optimizer.step(lambda: closure(cut[0]))
        other = closure(cut[1])
        assert cut[1].dni.optimizer.step() is None
        assert torch.equal(losses, other)
    assert len(runs) == 6
    assert all(map(torch.equal, cut[0].parameters(), cut[1].parameters()))


def test_what_an_optimizer_of_segments_refuses() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment")
    other = dni_fx.transform(perceptron(), X, cuts=2, optimizer=adam, step="segment")
    assert net.dni.optimizer is not None and other.dni.optimizer is not None
    with pytest.raises(DniFxError, match="an optimizer of their own"):
        net.dni.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(DniFxError, match="the same segments"):
        net.dni.optimizer.load_state_dict(other.dni.optimizer.state_dict())


def test_a_skipped_batch_counts_for_all_segments() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment", accumulate=2).train()
    optimizer: Any = net.dni.optimizer
    stepped = []
    optimizer.optimizers[-1][0].register_step_post_hook(lambda *_: stepped.append("last"))
    optimizer.optimizers[0][0].register_step_post_hook(lambda *_: stepped.append("first"))
    for batch in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), Y)
        if batch != 2:
            optimizer.zero_grad()  # in its other usual place
            loss.backward()
        optimizer.step()
    assert stepped == ["first", "last"] * 3 and not optimizer.accumulates


def test_a_look_at_gradients_is_no_pass() -> None:
    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=adam, step="segment", accumulate=2).train()
    for _ in range(4):
        loss = nn.functional.cross_entropy(net(X), Y)
        torch.autograd.grad(loss, [net.get_parameter("12.weight")], retain_graph=True)
        loss.backward()
    assert not net.dni.optimizer.accumulates


def test_optimizers_that_name_their_parameters() -> None:
    def named(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam([(f"p{i}", p) for i, p in enumerate(parameters)])

    net = dni_fx.transform(perceptron(), X, cuts=3, optimizer=named, step="segment").train()
    train(net, net.dni.optimizer)
    model = perceptron()
    optimizer = torch.optim.Adam(model.named_parameters())
    train(dni_fx.transform(model, X, cuts=3, optimizer=optimizer).train(), optimizer)
    assert "dni.10" in optimizer.param_groups[1]["param_names"]
