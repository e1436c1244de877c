"""Samples that forward reorders before a cut, where labels would go to the wrong samples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import dni_fx
from dni_fx.capture import capture, find_order, order
from dni_fx.errors import DniFxError
from dni_fx.graph import record_of
from dni_fx.model import Inputs

Change = Callable[[Tensor], Tensor]


def same(h: Tensor) -> Tensor:
    return h


def flip(h: Tensor) -> Tensor:
    return h.flip(0)


class Net(nn.Module):
    """Changes the samples after `a`, and changes them again after `b`."""

    def __init__(self, change: Change, back: Change = same, *, norm: bool = False) -> None:
        super().__init__()
        self.change, self.back = change, back
        self.a, self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()) if norm else nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.change(torch.tanh(self.a(x)))
        return self.d(torch.tanh(self.c(self.back(torch.tanh(self.b(h))))))


class Lengths(nn.Module):
    """Sorts the samples by length, and restores their order after `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.r = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True)
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        by_length = lengths.argsort(descending=True)
        h, _ = self.r(self.e(ids[by_length]))
        return self.c(torch.tanh(self.b(h[:, -1]))[by_length.argsort()])


class Packed(nn.Module):
    """Packs its sequences, which torch sorts and restores."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.r = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True)
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.e(ids), lengths, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.r(packed)[0], batch_first=True, total_length=ids.shape[1])
        return self.c(torch.tanh(self.b(h.mean(1))))


class Shuffled(Net):
    """Shuffles the samples in train mode, as ShuffleBN does, and restores their order."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.randperm(x.shape[0]) if self.training else torch.arange(x.shape[0])
        h = torch.tanh(self.b(torch.tanh(self.a(x))[drawn]))
        return self.d(torch.tanh(self.c(h[drawn.argsort()])))


class Attending(Net):
    """Attention from sample to sample, with dropout."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        weights = F.dropout((self.b(h) @ h.transpose(0, 1)).softmax(-1), 0.5)
        return self.d(torch.tanh(self.c(weights @ h)))


def reordered(model: nn.Module, *inputs: Tensor, frontend: str = "fx") -> set[str]:
    torch.manual_seed(0)
    example = Inputs(inputs)
    net = capture(model, example, frontend, compare=False).module
    find_order(net, example)
    return {node.name for node in net.graph.nodes if record_of(node).reordered}


FLAT = {"b", "tanh_1", "c", "tanh_2", "d", "output"}
REORDERS: dict[str, tuple[Change, tuple[int, ...]]] = {
    "reversed": (flip, (6, 5)),
    "rotated": (lambda h: h.roll(1, 0), (7, 5)),
    "even, then odd": (lambda h: torch.cat([h[::2], h[1::2]]), (6, 5)),
    "sorted by value": (lambda h: h[h.sum(1).argsort()], (7, 5)),
    "two samples": (flip, (2, 5)),
    "one sample": (flip, (1, 5)),
    "many samples": (flip, (40, 5)),
    "repeated as a whole": (lambda h: h.repeat(3, 1), (6, 5)),
    "rows by time": (lambda h: h.transpose(0, 1).reshape(-1, 8), (6, 7, 5)),
}


@pytest.mark.parametrize("name", REORDERS)
def test_reordered_samples_are_found(name: str) -> None:
    change, shape = REORDERS[name]
    assert reordered(Net(change), torch.randn(shape)) >= FLAT


def test_samples_that_are_equal_in_the_example_are_told_apart() -> None:
    assert reordered(Net(flip), torch.zeros(6, 5)) >= FLAT


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_an_order_that_is_restored_is_right_again(frontend: str) -> None:
    found = reordered(Net(flip, flip, norm=True), torch.randn(6, 5), frontend=frontend)
    assert found and not found & {"c", "d", "linear_2", "linear_3", "a", "linear"}
    assert found & {"b_0", "linear_1"}


RIGHT: dict[str, tuple[Change, tuple[int, ...]]] = {
    "unchanged": (same, (6, 5)),
    "rows by sample": (lambda h: h.reshape(-1, 8), (6, 7, 5)),
    "time first": (lambda h: h.transpose(0, 1), (6, 7, 5)),
    "each repeated": (lambda h: h.repeat_interleave(3, 0), (6, 5)),
    "centered": (lambda h: h - h.mean(0), (6, 5)),
    "dropped": (lambda h: F.dropout(h, 0.5), (6, 5)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_samples_in_order_are_right(name: str) -> None:
    change, shape = RIGHT[name]
    assert not reordered(Net(change), torch.randn(shape))


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_mixed_samples_in_order_are_right(frontend: str) -> None:
    assert not reordered(Net(same, norm=True), torch.randn(6, 5), frontend=frontend)
    assert not reordered(Attending(same), torch.randn(6, 5), frontend=frontend)


def test_a_sort_by_equal_lengths_is_found() -> None:
    ids = torch.randint(1, 20, (4, 7))
    found = reordered(Lengths(), ids, torch.full((4,), 7))
    assert {"b", "tanh"} <= found and "c" not in found


def test_packed_sequences_are_right() -> None:
    ids = torch.randint(1, 20, (4, 7))
    assert not reordered(Packed(), ids, torch.tensor([3, 7, 5, 7]), frontend="modules")


def test_samples_shuffled_in_train_mode_are_found() -> None:
    assert reordered(Shuffled(same), torch.randn(6, 5), frontend="modules") == {"b"}


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_a_cut_at_reordered_samples_is_refused_with_labels(frontend: str) -> None:
    x = torch.randn(6, 5)
    message = r"labels would go to the wrong samples at b, of shape \[6, 8\].* cut before that.*without labels"
    settings: list[dict[str, Any]] = [{"classes": 3}, {"context_size": 2}]
    for given in settings:
        with pytest.raises(DniFxError, match=message):
            dni_fx.transform(Net(flip, flip), x, cuts="b", frontend=frontend, **given)
    dni_fx.transform(Net(flip, flip), x, cuts="b", frontend=frontend)
    plan = dni_fx.plan(Net(flip, flip), x, cuts="b", frontend=frontend)
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(Net(flip, flip), x, cuts=plan, classes=3)


def test_rows_that_are_not_sample_by_sample_are_named() -> None:
    x = torch.randn(6, 7, 5)
    message = r"reshape, of shape \[42, 8\].* not sample by sample.* a label for each row, in the order of these rows"
    with pytest.warns(UserWarning, match=message):
        dni_fx.transform(Net(lambda h: h.transpose(0, 1).reshape(-1, 8)), x, cuts="reshape", classes=3, verify=False)
    dni_fx.transform(Net(lambda h: h.reshape(-1, 8)), x, cuts="reshape", classes=3, verify=False)


@pytest.mark.parametrize(("cuts", "places"), [(2, 1), (3, 2), ("leaves", 2)])
def test_other_cuts_go_elsewhere(cuts: Any, places: int) -> None:
    net = dni_fx.transform(Net(flip, flip), torch.randn(6, 5), cuts=cuts, classes=3)
    found = [tensor.node for cut in net.dni.plan.cuts for tensor in cut.tensors]
    assert len(found) == places and not {"b", "tanh_1", "flip"} & set(found)


def test_a_net_without_any_place_says_why() -> None:
    class First(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(0))

    model = First(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(DniFxError, match="labels would go to the wrong samples"):
        dni_fx.transform(model, torch.randn(6, 5), cuts=2, classes=3)
    dni_fx.transform(model, torch.randn(6, 5), cuts=2)


def test_the_order_is_found_only_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(dni_fx.planning, "find_order", never)
    dni_fx.transform(Net(same), torch.randn(6, 5), cuts="b")


def test_samples_in_order_cost_two_runs() -> None:
    calls = []
    net = capture(Net(same, norm=True), Inputs((torch.randn(6, 5),)), "modules", compare=False).module
    handle = net.dni_original.register_forward_hook(lambda *_: calls.append(None))
    find_order(net, Inputs((torch.randn(6, 5),)))
    handle.remove()
    assert len(calls) == 2


def test_a_model_is_left_as_it_was() -> None:
    model = Net(flip, norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    example = Inputs((torch.randn(6, 5),))
    net = capture(model, example, "fx", compare=False).module
    torch.set_rng_state(state)
    find_order(net, example)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("count", range(5, 17))
def test_no_reordering_commutes_with_the_permutation(count: int) -> None:
    permutation, places = order._cycle(count), torch.arange(count)
    turns = [places.roll(i) for i in range(1, count)]
    halves = torch.cat([places[::2], places[1::2]])
    assert sorted(permutation.tolist()) == places.tolist() and not (permutation == places).any()
    for other in (*turns, places.flip(0), halves, halves.argsort()):
        assert not torch.equal(permutation[other], other[permutation])
