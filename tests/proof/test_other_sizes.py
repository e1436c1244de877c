"""The check on other batch sizes and lengths: passes what is right, and finds sizes that were fixed."""

from typing import Any

import pytest
import torch
from layouts import CASES, FRONTENDS, SLOW, Attending, TimeFirst, sequences
from torch import Tensor, nn
from windows import H, Memory

import dni_fx
from dni_fx.proof.report import Check
from dni_fx.synthesizers import Activation, Synthesizer

X = torch.randn(6, 5)


def on_other_sizes(net: Any, *inputs: Any) -> Check:
    return next(c for c in dni_fx.check(net, inputs).checks if c.name == "other batch sizes and lengths")


def figure(net: Any, *inputs: Any) -> str:
    found = on_other_sizes(net, *inputs)
    assert found.passed, found
    return found.figure


@pytest.mark.parametrize(
    "name", [name if name in ("divergence", "flattened", "views") else pytest.param(name, marks=SLOW) for name in CASES]
)
def test_what_is_right_passes(name: str) -> None:
    case = CASES[name]
    net = dni_fx.transform(case.make(), case.inputs, cuts=2)
    rows = len(case.inputs[0])
    larger = 2 * rows if name == "pooled" else rows + 1
    assert figure(net, *case.inputs).startswith(f"size {larger} for {rows} along axis 0")


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_lengths_are_changed_where_they_are_free(frontend: str) -> None:
    x = torch.randn(6, 7, 8)
    net = dni_fx.transform(Attending(), x, cuts=2, frontend=frontend)
    assert figure(net, x).startswith(
        "size 7 for 6 along axis 0, size 8 for 7 along axis 1; size 1 for 6 along axis 0: "
    )


@pytest.mark.slow
def test_a_length_that_the_capture_fixes_is_left_out() -> None:
    net = dni_fx.transform(TimeFirst(), sequences(), frontend="export", cuts=["a"])
    with pytest.raises(TypeError, match="the capture had to fix"):
        net(sequences(6, 8))
    assert "for 7" not in figure(net, sequences())


def test_two_rows_where_batch_norm_takes_no_single_one() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert "size 2 for 6 along axis 0" in figure(dni_fx.transform(model, X, cuts=2), X)


def test_a_model_that_takes_no_other_sizes() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.reshape(6, 5))))

    assert figure(dni_fx.transform(Fixed(), X, cuts=2), X) == "the model takes no other sizes"


def test_a_state_keeps_its_sizes_but_for_the_batch() -> None:
    example = torch.randn(5, 1, H), torch.randn(5, 3, H)
    net = dni_fx.transform(Memory(), example, state=True)
    assert figure(net, *example).startswith(
        "size 6 for 5 along axis 0, size 2 for 1 along axis 1; size 1 for 5 along axis 0:"
    )


class ForSixRows(Synthesizer):
    """Has a weight for each row of the example."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.weight = nn.Parameter(torch.zeros(activation.shape))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return activation * self.weight


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_synthesizer_with_the_batch_size_built_in_is_found(frontend: str, unlock: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    net = dni_fx.transform(model, X, cuts=2, frontend=frontend, synthesizer=ForSixRows, unlock=unlock)
    found = on_other_sizes(net, X)
    assert not found.passed and found.figure.startswith("size 7 for 6 along axis 0: RuntimeError: The size of tensor")


class RowsRead(nn.Module):
    """Reads its number of rows as an int, which torch.export fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)).reshape(int(x.shape[0]), 8))


def test_a_batch_size_that_the_capture_fixed_is_found() -> None:
    net = dni_fx.transform(RowsRead(), X, cuts=2, frontend="export", verify=False)
    found = on_other_sizes(net, X)
    assert not found.passed and "size 7 for 6 along axis 0: TypeError: argument 'x' has size 7" in found.figure


def test_a_wrong_value_at_another_size_is_found() -> None:
    """The graph runs on any size, but its output is right for 6 rows alone."""
    net = dni_fx.transform(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), X, cuts=2)
    last = next(node for node in net.graph.nodes if node.name == "_2")
    with net.graph.inserting_after(last):
        scaled = net.graph.call_function(lambda h: h * (len(h) / 6), (last,))
    last.replace_all_uses_with(scaled, lambda user: user is not scaled)
    net.recompile()
    found = on_other_sizes(net, X)
    assert not found.passed and found.figure.startswith("size 7 for 6 along axis 0: off by")


def test_a_wrong_value_at_another_length_is_found() -> None:
    x = sequences()
    net = dni_fx.transform(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), x, cuts=2)
    last = next(node for node in net.graph.nodes if node.name == "_2")
    with net.graph.inserting_after(last):
        scaled = net.graph.call_function(lambda h: h * (h.shape[1] / 7), (last,))
    last.replace_all_uses_with(scaled, lambda user: user is not scaled)
    net.recompile()
    found = on_other_sizes(net, x)
    assert not found.passed and found.figure.startswith("size 7 for 6 along axis 0, size 8 for 7 along axis 1: off by")


def test_sizes_that_the_model_does_not_take_at_once_are_changed_one_by_one() -> None:
    class OneAtATime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 6 and x.shape[1] != 7:
                raise ValueError
            return self.b(torch.tanh(self.a(x)))

    net = dni_fx.transform(OneAtATime(), sequences(), cuts=2, frontend="modules")
    assert figure(net, sequences()).startswith(
        "size 7 for 6 along axis 0; size 8 for 7 along axis 1; size 1 for 6 along axis 0: "
    )
