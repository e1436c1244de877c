"""A forward pass without a backward pass leaves gradients with unlock="backward": they must not count twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import Training
from dni_fx.errors import BackwardOrderError

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def cut_net(learned: bool = True, **options: Any) -> Any:
    """A net with two cuts; its synthesizers predict a gradient that is not zero, as if they had `learned`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net = dni_fx.transform(model, X, cuts=["1", "3"], **options).train()
    for parameter in net.dni.parameters() if learned else ():
        nn.init.constant_(parameter, 0.1)
    return net


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1)


def metrics_in_train_mode() -> None:
    net = cut_net()
    net(X)
    net(X).sum().backward()


def metrics_between_forward_and_backward() -> None:
    net = cut_net()
    loss = net(X).sum()
    net(X)
    loss.backward()


def skipped_batch() -> None:
    """The loop has no zero_grad() after the batch that is skipped; `loss` is alive in the next forward pass."""
    net = cut_net()
    optimizer = optimizer_of(net)
    for batch in range(3):
        loss = net(X).sum()
        if batch == 1:
            continue
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def outputs_kept_in_a_list() -> None:
    net = cut_net()
    optimizer, outputs = optimizer_of(net), []
    for _ in range(2):
        optimizer.zero_grad()
        outputs.append(net(X))
        net(X).sum().backward()
        optimizer.step()


def error_in_the_loop() -> None:
    net = cut_net()
    for batch in range(2):
        try:
            loss = net(X).sum()
            if batch == 0:
                raise ValueError
            loss.backward()
        except ValueError:
            pass


def error_in_forward() -> None:
    def fail(*_: Any) -> None:
        raise ValueError

    net = cut_net()
    handle = net.get_submodule("4").register_forward_pre_hook(fail)
    with pytest.raises(ValueError):
        net(X)
    handle.remove()
    net(X).sum().backward()


def detached_output() -> None:
    net = cut_net(frontend="modules")
    teacher = net(X).detach()
    (net(X) - teacher).square().sum().backward()


@pytest.mark.parametrize(
    "loop",
    [
        metrics_in_train_mode,
        metrics_between_forward_and_backward,
        skipped_batch,
        outputs_kept_in_a_list,
        error_in_the_loop,
        error_in_forward,
        detached_output,
    ],
)
def test_an_abandoned_pass_is_an_error(loop: Callable[[], None]) -> None:
    with pytest.raises(BackwardOrderError, match="had no backward pass"):
        loop()


def plain(net: Any, batches: int) -> None:
    for _ in range(batches):
        net.zero_grad()
        net(X).sum().backward()


def siamese(net: Any, batches: int) -> None:
    for _ in range(batches):
        (net(X) - net(X + 1)).square().sum().backward()


def two_losses(net: Any, batches: int) -> None:
    for _ in range(batches):
        one, other = net(X).sum(), net(X + 1).sum()
        one.backward()
        other.backward()


def accumulating(net: Any, batches: int) -> None:
    for _ in range(batches):
        net(X).sum().backward()


def zeroed_after(net: Any, batches: int, set_to_none: bool = True) -> None:
    for _ in range(batches):
        net(X)
        net.zero_grad(set_to_none)
        net(X).sum().backward()


def zeroed_at_the_start(net: Any, batches: int, set_to_none: bool = True) -> None:
    """`loss` of the skipped batch is alive in the next forward pass, and freed before its backward pass."""
    for batch in range(batches + 1):
        net.zero_grad(set_to_none)
        loss = net(X).sum()
        if batch != 1:
            loss.backward()


def metrics_after_the_step(net: Any, batches: int, set_to_none: bool = True) -> None:
    outputs: list[Tensor] = []
    for _ in range(batches):
        net.zero_grad(set_to_none)
        net(X).sum().backward()
        outputs.append(net(X))
    outputs.clear()
    net.zero_grad(set_to_none)
    net(X).sum().backward()


def without_gradient(net: Any, batches: int) -> None:
    for _ in range(batches):
        net(X).sum().backward()
        with torch.no_grad():
            net(X)
        net.eval()
        net(X)
        net.train()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("loop", [zeroed_after, zeroed_at_the_start, metrics_after_the_step])
def test_erased_gradients_count_once(loop: Callable[..., None], set_to_none: bool) -> None:
    loop(cut_net(), 2, set_to_none)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training": Training(warmup=1)},
        {"training": Training(every=2)},
        {"synthesizer": "zero"},
        {"unlock": "none"},
        {"frontend": "modules"},
    ],
)
@pytest.mark.parametrize("loop", [plain, siamese, two_losses, accumulating, without_gradient])
def test_a_right_loop_is_silent(loop: Callable[[Any, int], None], options: dict[str, Any]) -> None:
    loop(cut_net(**options), 3)


def test_synthesizers_that_do_not_learn_are_no_reason() -> None:
    """No target comes where a prediction requires no gradient: the outputs show whether a backward pass came."""
    net = cut_net()
    net.dni.requires_grad_(False)
    accumulating(net, 3)
    net(X)
    with pytest.raises(BackwardOrderError):
        net(X).sum().backward()


def test_gradients_that_are_zero_do_no_harm() -> None:
    net = cut_net(learned=False)
    net(X)
    accumulating(net, 2)


def test_with_an_optimizer_for_each_segment_a_skipped_batch_is_a_pass() -> None:
    net = cut_net(step="segment", optimizer=lambda p: torch.optim.SGD(p, 0.1), accumulate=2)
    net(X)
    accumulating(net, 2)


def test_the_error_comes_before_the_step_and_goes_with_zero_grad() -> None:
    net = cut_net()
    optimizer = optimizer_of(net)
    before = [p.detach().clone() for p in net.parameters()]
    net(X)
    net(X)  # no harm is done before a backward pass
    with pytest.raises(BackwardOrderError):
        net(X).sum().backward()
    optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
    accumulating(net, 2)


def test_no_gradient_is_kept_longer_than_its_backward_pass() -> None:
    net = cut_net()
    plain(net, 1)
    assert all(not segment.unfinished and segment.forward_pass is None for segment in net.dni.segments)
