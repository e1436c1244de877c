"""From `cuts=...` to places in the graph."""

from typing import Any

import pytest
import torch
from nets import LongSkip, Recurrent, ResNet, Tied, mlp
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError, NoLegalCutError

torch.manual_seed(0)
X = torch.rand(5, 6)
TIED = (torch.randint(0, 10, (5, 7)), torch.rand(5, 7))


def after(model: nn.Module, example: Any, cuts: Any) -> list[str]:
    return [cut.after for cut in dni_fx.plan(model, example, cuts=cuts).cuts]


GOOD: list[tuple[Any, Any, Any, list[str]]] = [
    (mlp, X, "2", ["_2"]),
    (mlp, X, ["2"], ["_2"]),
    (mlp, X, ("2", "4"), ["_2", "_4"]),
    (mlp, X, ["4", "2", "4"], ["_2", "_4"]),
    (mlp, X, "_2", ["_2"]),  # the node of that name
    (mlp, X, 2, ["_6"]),
    (mlp, X, 3, ["_2", "_4"]),
    (mlp, X, 4, ["_2", "_4", "_6"]),
    (mlp, X, "every:ReLU", ["_2", "_4", "_6"]),
    (ResNet, X, "blocks.1", ["blocks_1_relu_1"]),
    (ResNet, X, "stem", ["stem_1"]),
    (ResNet, X, "blocks", ["blocks_2_relu_1"]),  # a container
    (ResNet, X, ["stem", "blocks.0.first"], ["stem_1", "blocks_0_first"]),
    (ResNet, X, "every:Residual", ["blocks_0_relu_1", "blocks_1_relu_1", "blocks_2_relu_1"]),
    (ResNet, X, "every:Sequential", ["stem_1", "blocks_2_relu_1"]),
    (LongSkip, X, ["tanh", "tanh_2"], ["tanh", "tanh_2"]),
    (Recurrent, torch.rand(5, 4, 5), "lstm", ["getitem_3"]),  # past what is taken out of its tuple
    (Tied, TIED, "mix", ["mix", "mix_1"]),  # after each of its two calls
    (Tied, TIED, "mix_1", ["mix_1"]),
]


@pytest.mark.parametrize(("make", "example", "cuts", "expected"), GOOD, ids=[f"{c[0].__name__}-{c[2]}" for c in GOOD])
def test_cuts(make: Any, example: Any, cuts: Any, expected: list[str]) -> None:
    assert after(make(), example, cuts) == expected


class Masked(nn.Module):
    """An integer and a boolean value on the way, and a last layer whose output is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        shifted = ids + 1
        mask = shifted > 3
        h = torch.relu(self.a(self.embed(shifted))) * mask.unsqueeze(-1)
        best = h.argmax(-1)
        return torch.relu(self.b(h)) + best.unsqueeze(-1)


IDS = torch.randint(0, 8, (4, 5))

BAD: list[tuple[Any, Any, Any, list[str]]] = [
    (mlp, X, 1, ["cuts=1", "2 or more"]),
    (mlp, X, 0, ["cuts=0"]),
    (mlp, X, -1, ["cuts=-1"]),
    (mlp, X, True, ["cuts=True"]),
    (mlp, X, False, ["cuts=False"]),
    (mlp, X, 5, ["cannot make 5 segments", "4 at most"]),
    (mlp, X, 1000, ["cannot make 1000 segments"]),
    (mlp, X, [], ["no cuts given"]),
    (mlp, X, (), ["no cuts given"]),
    (mlp, X, "", ["''"]),
    (mlp, X, "outo", ["'outo'"]),
    (mlp, X, None, ["cuts=None"]),
    (mlp, X, 2.5, ["cuts=2.5"]),
    (mlp, X, {"2": 1}, ["cuts={'2': 1}", "every:Class"]),
    (mlp, X, [2, 4], ["cuts=[2, 4]"]),
    (mlp, X, ["2", None], ["cuts="]),
    (mlp, X, b"2", ["cuts="]),
    (mlp, X, "every:", ["''"]),
    (mlp, X, "every:Relu", ["'Relu'", "ReLU"]),
    (mlp, X, "every:Conv2d", ["no module of class 'Conv2d'"]),
    (mlp, X, ["0", "1", "2"], ["between the cuts after '_1' and '_2'", "drop one"]),
    (mlp, X, "7", ["'7'"]),
    (mlp, X, "output", ["nothing comes after it"]),
    (mlp, X, "input_1", ["carries no gradient"]),
    (ResNet, X, "block.1", ["'block.1'", "blocks.1"]),
    (ResNet, X, "head", ["'head'"]),
    (ResNet, X, "every:ResNet", ["ResNet"]),
    (Masked, IDS, "gt", ["a bool tensor of shape [4, 5]", "carries no gradient"]),
    (Masked, IDS, "add", ["a int64 tensor"]),
    (Masked, IDS, "argmax", ["a int64 tensor of shape [4, 5]", "carries no gradient"]),
    (Masked, IDS, "b", ["'b'"]),
    (Masked, IDS, ["relu", "mul"], ["between the cuts after 'relu' and 'mul'"]),
    (Masked, IDS, "scale", ["'scale'"]),  # in the model, not in the graph
]


@pytest.mark.parametrize(("make", "example", "cuts", "parts"), BAD, ids=[f"{c[0].__name__}-{c[2]}" for c in BAD])
def test_bad_cuts(make: Any, example: Any, cuts: Any, parts: list[str]) -> None:
    with pytest.raises(DniFxError) as caught:
        dni_fx.plan(make(), example, cuts=cuts)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("cuts", ["auto", 2, 3])
@pytest.mark.parametrize(
    "model",
    [nn.Linear(6, 2), nn.Sequential(nn.ReLU(), nn.Linear(6, 2), nn.ReLU()), mlp().requires_grad_(False)],
    ids=["linear", "one-layer", "frozen"],
)
def test_no_legal_cut(model: nn.Module, cuts: Any) -> None:
    with pytest.raises(NoLegalCutError) as caught:
        dni_fx.plan(model, X, cuts=cuts)
    assert caught.value.exit_code == 1


def test_a_frozen_layer_is_no_segment_of_its_own() -> None:
    model = mlp()
    model[0].requires_grad_(False)  # type: ignore[index, operator]
    model[1].requires_grad_(False)  # type: ignore[index, operator]
    with pytest.raises(DniFxError, match="'2'"):
        dni_fx.plan(model, X, cuts="2")
    assert after(model, X, 3) == ["_4", "_6"]


def test_after_every_layer_that_trains() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)
    )
    plan = dni_fx.plan(model, torch.randn(8, 4), cuts="leaves")
    assert [cut.after for cut in plan.cuts] == ["_0", "_1", "_3_0"]
    with pytest.raises(DniFxError, match="fewer than two layers"):
        dni_fx.plan(nn.Sequential(nn.Linear(4, 4)), torch.randn(8, 4), cuts="leaves")


def test_a_wrong_name_has_all_names_or_the_way_to_them() -> None:
    small = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(DniFxError, match=r"called 'zzz' to cut after; there are 0, 1, 2, input_1, _0, _1, _2.*"):
        dni_fx.plan(small, X, cuts="zzz")
    large = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.Tanh())])
    for name, words in (("zzz", r"there are 0, 1, .* and \d+ more"), ("_99", "the nearest names are _9")):
        with pytest.raises(DniFxError, match=rf"{words}.*; `dni-fx inspect TARGET` lists places to cut"):
            dni_fx.plan(large, X, cuts=name)
    with pytest.raises(DniFxError, match=r"no module of class 'Block'; the classes are .*Linear, .*Tanh"):
        dni_fx.plan(large, X, cuts="every:Block")
