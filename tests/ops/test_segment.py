"""Segment: its listeners are called in their order, and copies of a net take along what belongs to them."""

import copy
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import BackwardOrderError
from dni_fx.ops import Segment, SegmentListener
from dni_fx.runtime.averaging import Averaging
from dni_fx.runtime.sharding import Sharding
from dni_fx.settings import Training

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


class Recorder:
    """Writes down every event, and whether the parameter had a gradient then."""

    def __init__(self, name: str, events: list[tuple[Any, ...]], parameter: nn.Parameter) -> None:
        self.name, self.events, self.parameter = name, events, parameter

    def pre_backward(self, index: int) -> None:
        self.events.append((self.name, "pre_backward", index, self.parameter.grad is not None))

    def post_backward(self, index: int) -> None:
        self.events.append((self.name, "post_backward", index, self.parameter.grad is not None))

    def post_forward(self, index: int, outputs: Sequence[Tensor]) -> None:
        self.events.append((self.name, "post_forward", index, len(outputs)))


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def cut_net(**options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return dni_fx.transform(model, X, cuts=["1", "3"], **options).train()


def test_listeners_are_called_in_their_order_around_the_backward_pass() -> None:
    layer, events = nn.Linear(8, 2), []
    segment = Segment(index=3)
    segment.hold(layer.parameters())
    segment.listeners = [Recorder(name, events, layer.weight) for name in ("first", "second")]
    h = layer(X)
    segment.run_backward([h], [torch.ones_like(h)])
    assert events == [
        ("first", "pre_backward", 3, False),
        ("second", "pre_backward", 3, False),
        ("first", "post_backward", 3, True),
        ("second", "post_backward", 3, True),
    ]


def test_a_backward_pass_that_fails_has_no_end() -> None:
    layer, events = nn.Linear(8, 2), []
    segment = Segment()
    segment.listeners = [Recorder("only", events, layer.weight)]
    h = layer(X)
    h.sum().backward()
    with pytest.raises(BackwardOrderError, match="an earlier backward pass has freed"):
        segment.run_backward([h], [torch.ones_like(h)])
    assert [event[1] for event in events] == ["pre_backward"]


def test_listeners_run_where_nothing_goes_backward() -> None:
    """A prediction that is not finite is dropped; the pass counts all the same."""
    layer, events = nn.Linear(8, 2), []
    segment = Segment()
    segment.listeners = [Recorder("only", events, layer.weight)]
    segment.run_backward([], [])
    assert [event[1] for event in events] == ["pre_backward", "post_backward"]


def test_listeners_run_without_autocast() -> None:
    class Looking(Recorder):
        def post_backward(self, index: int) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))

    seen: list[bool] = []
    layer = nn.Linear(8, 2)
    segment = Segment()
    segment.listeners = [Looking("only", [], layer.weight)]
    with torch.autocast("cpu", torch.bfloat16):
        h = layer(X)
        segment.run_backward([h], [torch.ones_like(h)])
    assert seen == [False]


def test_in_a_net_every_segment_has_its_index_and_the_warm_up_its_own_event() -> None:
    net = cut_net(training=Training(warmup=1))
    events: list[tuple[Any, ...]] = []
    for segment in net.dni.segments:
        segment.listeners.append(Recorder("r", events, segment.held[0]))
    for _ in range(2):
        net(X).sum().backward()
        events.append(())
    assert [event[1:3] for event in events] == [
        ("post_forward", 0),
        ("post_forward", 1),
        (),
        ("pre_backward", 0),
        ("post_backward", 0),
        ("pre_backward", 1),
        ("post_backward", 1),
        (),
    ]


def test_the_averaging_stands_before_the_optimizer() -> None:
    """It starts the averages that the optimizer steps with."""
    net = cut_net(optimizer=adam, step="segment")
    for segment in net.dni.segments:
        listeners: list[SegmentListener] = segment.listeners
        assert listeners[1:] == [net.dni.averaging, net.dni.optimizer]
    again = dni_fx.SegmentOptimizer(net, adam)
    assert all(segment.listeners[1:] == [net.dni.averaging, again] for segment in net.dni.segments)
    again.remove()
    assert all(segment.listeners[1:] == [net.dni.averaging] for segment in net.dni.segments)
    assert all(not segment.listeners for segment in cut_net(unlock="none").dni.segments)


def copied(net: Any) -> Any:
    return copy.deepcopy(net)


def pickled(net: Any) -> Any:
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("copy_of", [copied, pickled])
def test_a_copy_has_its_own_averaging_and_no_optimizer_of_another_net(copy_of: Any) -> None:
    net = cut_net(optimizer=adam, step="segment")
    other = copy_of(net)
    own = {id(p) for p in other.parameters()}
    assert isinstance(other.dni.averaging, Averaging) and other.dni.averaging is not net.dni.averaging
    assert {id(p) for group in other.dni.averaging.groups for p in group} <= own
    for segment, original in zip(other.dni.segments, net.dni.segments, strict=True):
        optimizers = [other.dni.optimizer] if copy_of is copied else []
        sharding, *rest = segment.listeners
        assert isinstance(sharding, Sharding) and sharding is not original.listeners[0]
        assert rest == [other.dni.averaging, *optimizers] and len(original.listeners) == 3
        assert not any(listener is net.dni.optimizer for listener in segment.listeners)
        assert {id(p) for p in segment.held} <= own and len(segment.held) == len(original.held)
    assert other.state_dict().keys() == net.state_dict().keys()


def test_what_a_segment_holds_is_not_its_own() -> None:
    layer = nn.Linear(8, 2)
    segment = Segment()
    segment.hold(layer.parameters())
    assert [p.shape for p in segment.held] == [(2,), (2, 8)]  # the smallest first
    assert not [*segment.parameters()] and not segment.state_dict()
    assert [*Segment(training=Training(warmup=2)).state_dict()] == ["steps"]
