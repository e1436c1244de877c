"""The batch axis and the free axes of every tensor, by every front end."""

from typing import Any

import pytest
import torch
from layouts import CASES, NAMES, SLOW, Attending, Flattened, Stateful, TimeFirst, sequences
from torch import Tensor, nn

import dni_fx
from dni_fx.capture import axes, capture
from dni_fx.graph import fixed_axes, record_of
from dni_fx.model import Inputs

# Of some nodes: the batch axis, the entries for each sample, the free axes, the feature axis.
FOUND: dict[str, dict[str, tuple[int | None, int, set[int], int]]] = {
    "scaled": {"a": (0, 1, set(), -1), "norm": (0, 1, set(), -1)},
    "divergence": {"mean": (0, 1, set(), -1), "sum_1": (0, 1, set(), -1)},
    "time first": {"i": (0, 1, {1}, -1), "getitem": (1, 1, {0}, -1), "o": (0, 1, set(), -1)},
    "time first, T = N": {"i": (0, 1, {1}, -1), "getitem": (1, 1, {0}, -1), "o": (0, 1, set(), -1)},
    "time first, N = 1": {"i": (0, 1, {1}, -1), "getitem": (1, 1, {0}, -1)},
    "encoder": {"i": (0, 1, {1}, -1), "layers_0": (1, 1, {0}, -1), "o": (0, 1, {1}, -1)},
    "encoder, T = N": {"i": (0, 1, {1}, -1), "layers_0": (1, 1, {0}, -1), "o": (0, 1, {1}, -1)},
    "flattened": {"a": (0, 0, set(), -1), "reshape_1": (0, 1, {1}, -1)},
    "flattened, T fixed": {"a": (0, 7, set(), -1), "reshape_1": (0, 1, set(), -1)},
    "pixels": {"conv": (0, 1, {2, 3}, 1), "a": (0, 0, set(), -1)},
    "moved": {"a": (0, 1, {1}, -1), "einsum": (2, 1, {1}, 0)},
    "attending": {"q": (0, 1, {1}, -1), "matmul": (0, 2, {1, 2}, -1), "matmul_1": (0, 2, {1}, -1)},
    "attending, T = F": {"q": (0, 1, {1}, -1), "matmul": (0, 2, {1, 2}, -1)},
    "views": {"a": (0, 2, set(), -1), "output": (0, 2, {1}, -1)},
    "prototypes": {"a": (0, 1, set(), -1), "p": (None, 1, set(), -1)},
    "stateful": {"i": (0, 1, {1}, -1), "state": (1, 1, set(), -1)},
    "stateful, N = layers": {"i": (0, 1, {1}, -1), "state": (1, 1, set(), -1)},
    "pooled": {"a": (0, 1, set(), -1), "mean": (0, 0, set(), -1)},
    "tokens": {"_0": (0, 1, set(), -1), "_3": (0, 1, set(), -1)},
}


def found(model: nn.Module, inputs: tuple[Tensor, ...], frontend: str) -> dict[str, Any]:
    torch.manual_seed(0)
    nodes = capture(model, Inputs(inputs), frontend).module.graph.nodes
    records = {node.name: record_of(node) for node in nodes if record_of(node).shape}
    return {name: (r.batch, r.rows, set(r.free), r.axis) for name, r in records.items()}


@pytest.mark.parametrize("name", NAMES)
def test_axes_in_a_graph(name: str) -> None:
    case = CASES[name]
    assert FOUND[name].items() <= found(case.make(), case.inputs, "fx").items()


@pytest.mark.parametrize(
    "name", ["time first, T = N", "flattened", pytest.param("stateful, N = layers", marks=SLOW), "tokens"]
)
def test_axes_without_a_graph(name: str) -> None:
    case = CASES[name]
    records = found(case.make(), case.inputs, "modules")
    shared = FOUND[name].keys() & records.keys()
    assert shared
    assert {node: records[node] for node in shared} == {node: FOUND[name][node] for node in shared}


@pytest.mark.slow
def test_axes_in_a_graph_by_export() -> None:
    flat = found(Flattened(), (sequences(),), "export")
    assert flat["tanh"] == (0, 0, set(), -1)
    assert flat["a_weight"][0] is None
    assert found(TimeFirst(), (sequences(6, 6),), "export")["transpose"][0] == 1


def test_fake_tensors_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = found(Attending(), (torch.randn(6, 7, 8),), "fx"), found(Attending(), (torch.randn(6, 7, 8),), "modules")
    monkeypatch.setattr(axes, "_SMALL", 0)
    assert found(Attending(), (torch.randn(6, 7, 8),), "fx") == expected[0]
    assert found(Attending(), (torch.randn(6, 7, 8),), "modules") == expected[1]


class Branch(nn.Module):
    """Reads a value, which fake tensors do not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_a_model_that_reads_values_runs_on_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "_SMALL", 0)
    model = nn.Sequential(nn.Linear(5, 8), Branch(), nn.Linear(8, 3))
    assert found(model, (sequences(),), "modules")["_0"] == (0, 1, {1}, -1)


class Fixed(nn.Module):
    """Takes 6 rows alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)).transpose(0, 1).reshape(8, 6).transpose(0, 1))


def test_a_fixed_batch_size_is_known_by_its_size() -> None:
    records = found(Fixed(), (torch.randn(6, 5),), "fx")
    assert records["a"][:2] == (0, 1) and records["transpose"][:2] == (1, 1)


def test_one_sample_without_a_batch_axis_has_none() -> None:
    records = found(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), (torch.randn(8),), "fx")
    assert records["_0"][0] is None


@pytest.mark.parametrize(("length", "free"), [(7, {1}), (4, set())])
def test_a_limit_of_the_length_is_no_obstacle(length: int, free: set[int]) -> None:
    """Positions for 7 tokens take fewer: a shorter input is tried, too; positions that are added take no other."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.positions = nn.Parameter(torch.randn(length, 8))

        def forward(self, x: Tensor) -> Tensor:
            positions = self.positions[: x.shape[1]] if length == 7 else self.positions
            return self.b(torch.tanh(self.a(x) + positions))

    assert found(Positions(), (sequences(6, length),), "fx")["b"][2] == free


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found(model, (torch.randn(6, 5),), "fx")
    torch.random.set_rng_state(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_fixed_axes_of_a_record() -> None:
    net = capture(Stateful(), Inputs((sequences(), torch.zeros(2, 6, 8))), "fx").module
    records = {node.name: record_of(node) for node in net.graph.nodes}
    assert fixed_axes(records["state"]) == [0, 2]
    assert fixed_axes(records["i"]) == [2]


class Bare(nn.Module):
    """Its first layer gets the inputs as they are."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.a, self.o = nn.GRU(5, 8, batch_first=batch_first), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.a(x)[0]))


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_inputs_that_may_be_time_first_are_named(frontend: str) -> None:
    x = torch.randn(6, 6, 5)
    with pytest.warns(UserWarning, match=r"a takes \(time, batch, features\), but the first axis .* batch_first=True"):
        dni_fx.transform(Bare(batch_first=False), x, cuts=2, classes=3, frontend=frontend)
    dni_fx.transform(Bare(batch_first=True), x, cuts=2, classes=3, frontend=frontend)
    dni_fx.transform(Bare(batch_first=False), x, cuts=2, frontend=frontend)  # no labels
    dni_fx.transform(TimeFirst(), x, cuts=2, classes=3, frontend=frontend)


class Normed(nn.Module):
    """Takes no single row; and one row of `x` with more rows of `y`, by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(y))) + x)


def test_a_single_row_that_broadcasts_is_no_batch_of_one() -> None:
    inputs = Inputs((torch.randn(2, 8), torch.randn(2, 5)))
    model = Normed()

    def run(other: Inputs) -> Tensor | None:
        try:
            return model(*other.args)
        except ValueError:
            return None

    assert axes.runs_at_other_batch_sizes(inputs, run, [1]) is None
    larger = axes.runs_at_other_batch_sizes(inputs, run)
    assert larger is not None and larger.axes == ((0, 0), (1, 0)) and larger.sizes == (2, 4)
