"""Cuts that tensors without features of a fixed size would cross: avoided, skipped or refused."""

from typing import Any

import pytest
import torch
from layouts import CASES, FRONTENDS, SLOW, Attending, Divergence, Scaled, Views, sequences
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.plans import CrossingTensor
from dni_fx.synthesizers import Activation, Linear


class Narrow(nn.Module):
    """A number a sample is the narrowest place between any two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.base = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)).mean(1)
        h = torch.tanh(self.b(torch.outer(h, self.base))).mean(1)
        return self.c(torch.outer(h, self.base))


def crossing(net: Any) -> list[CrossingTensor]:
    return [tensor for cut in net.dni.plan.cuts for tensor in cut.tensors]


@pytest.mark.parametrize("cuts", [2, 3, "leaves"])
def test_no_number_a_sample_crosses_a_cut(cuts: Any) -> None:
    net = dni_fx.transform(Narrow(), torch.randn(512, 8), cuts=cuts)
    assert len(net.dni.plan.cuts) == (1 if cuts == 2 else 2)
    assert all(len(tensor.shape) == 2 for tensor in crossing(net))


@pytest.mark.parametrize("frontend", ["fx", pytest.param("export", marks=SLOW)])
def test_automatic_cuts_have_features_of_a_fixed_size(frontend: str) -> None:
    net = dni_fx.transform(Divergence(), torch.randn(6, 6), cuts=2, frontend=frontend)
    assert all(len(tensor.shape) == 2 for tensor in crossing(net))


REFUSED: list[tuple[Any, tuple[int, ...], str, str]] = [
    (Scaled, (6, 8), "tanh_1", r"no synthesizer fits norm, of shape \[6\], .* along axis 0 follows the inputs.*cut at"),
    (Divergence, (6, 6), "sum_1", r"no synthesizer fits sum_1, of shape \[6\]"),
    (
        Attending,
        (6, 7, 8),
        "matmul",
        r"no synthesizer fits matmul, of shape \[12, 7, 7\], .* axes 0, 1, 2 follows",
    ),
]


@pytest.mark.parametrize(("make", "shape", "cut", "message"), REFUSED)
def test_by_name_the_tensor_is_refused_when_the_net_is_made(
    make: Any, shape: tuple[int, ...], cut: str, message: str
) -> None:
    with pytest.raises(DniFxError, match=message):
        dni_fx.transform(make(), torch.randn(shape), cuts=[cut])


@pytest.mark.parametrize(("cuts", "left"), [("leaves", "2 of 3"), ("every:Linear", "3 of 4")])
def test_calls_with_such_a_tensor_are_no_legal_cut(cuts: str, left: str) -> None:
    net = dni_fx.transform(Scaled(), torch.randn(6, 8), cuts=cuts)
    assert [cut.after for cut in net.dni.plan.cuts] == ["a"]
    assert f"({left} calls are no legal cut)" in net.dni.plan.why


def test_if_no_call_is_a_legal_cut_the_message_names_the_tensor() -> None:
    class Late(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(x * self.a.weight[0])
            norm = h.norm(dim=1)
            return self.d(torch.tanh(self.c(torch.tanh(self.b(h))))) * norm[:, None]

    with pytest.raises(DniFxError, match=r"no call of a layer .* is a legal cut: no synthesizer fits norm"):
        dni_fx.transform(Late(), torch.randn(6, 8), cuts="leaves")


def own(activation: Activation, context_size: int) -> nn.Module:
    return Linear(activation, context_size)


def test_a_factory_of_the_users_own_may_take_free_features_but_not_the_batch() -> None:
    net = dni_fx.transform(Attending(), torch.randn(6, 7, 8), cuts=["matmul"], synthesizer=own)
    assert any(tensor.shape == (12, 7, 7) for tensor in crossing(net))
    with pytest.raises(DniFxError, match=r"no synthesizer fits norm, of shape \[6\]"):
        dni_fx.transform(Scaled(), torch.randn(6, 8), cuts=["tanh_1"], synthesizer=own)


class Mixed(nn.Module):
    """Flattened at the narrower of two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(h.reshape(-1, 8)))).reshape(x.shape[0], x.shape[1], 3)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_with_labels_automatic_cuts_go_where_rows_are_samples(frontend: str) -> None:
    x = sequences()
    net = dni_fx.transform(Mixed(), x, cuts=2, frontend=frontend)
    assert crossing(net)[0].rows == 0
    net = dni_fx.transform(Mixed(), x, cuts=2, classes=3, frontend=frontend)
    assert [(tensor.batch, tensor.rows) for tensor in crossing(net)] == [(0, 1)]
    net(x, dni_context=torch.arange(6) % 3).square().mean().backward()


def test_with_labels_and_no_other_place_rows_get_a_label_each() -> None:
    inputs = torch.randn(6, 5), torch.randn(6, 5)
    with pytest.warns(UserWarning, match="tanh_1, of shape .12, 8.*rows are not sample by sample"):
        net = dni_fx.transform(Views(), inputs, cuts=2, classes=3)
    assert [tensor.rows for tensor in crossing(net)] == [2]
    net(*inputs, dni_context=torch.arange(12) % 3).square().mean().backward()


def test_a_head_needs_a_batch_axis() -> None:
    x = torch.randn(4, 5)
    options: dict[str, Any] = {"cuts": ["tanh_2"], "classes": 3, "loss": "cross_entropy"}
    with pytest.raises(DniFxError, match="needs labels, a row a sample"):
        dni_fx.transform(CASES["prototypes"].make(), x, synthesizer="guided_head", **options)
    net = dni_fx.transform(CASES["prototypes"].make(), x, **options)
    assert [type(s).__name__ for s in net.dni.synthesizers.values()] == ["ExitGradient", "ExitGradient"]


def test_the_plan_in_json_holds_the_axes() -> None:
    case = CASES["time first"]
    plan = dni_fx.plan(case.make(), case.inputs, cuts=["a"])
    again = dni_fx.Plan.from_json(plan.to_json())
    assert (again.cuts[0].tensors[0].batch, again.cuts[0].tensors[0].rows) == (1, 1)
    assert dni_fx.transform(case.make(), case.inputs, cuts=again).dni.plan.cuts == plan.cuts
