"""From `cuts=...` to places in the graph, and plans that are saved and applied again."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import LongSkip, Recurrent, ResNet, Tied
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError, NoLegalCutError

torch.manual_seed(0)
X = torch.rand(5, 6)
TIED = (torch.randint(0, 10, (5, 7)), torch.rand(5, 7))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
        nn.Linear(8, 4),
    )  # fmt: skip


def after(model: nn.Module, example: Any, cuts: Any) -> list[str]:
    return [cut.after for cut in dni_fx.plan(model, example, cuts=cuts).cuts]


GOOD: list[tuple[Any, Any, Any, list[str]]] = [
    (mlp, X, "2", ["_2"]),
    (mlp, X, ["2"], ["_2"]),
    (mlp, X, ("2", "4"), ["_2", "_4"]),
    (mlp, X, ["4", "2", "4"], ["_2", "_4"]),
    (mlp, X, "_2", ["_2"]),  # the node of that name
    (mlp, X, "auto", ["_6"]),
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


# ----------------------------------------------------------------------------------------------------- plans
CASES: list[tuple[Any, Any, Any]] = [
    (mlp, X, 3),
    (ResNet, X, "every:Residual"),
    (LongSkip, X, ["tanh", "tanh_1", "tanh_2"]),
    (Recurrent, torch.rand(5, 4, 5), ["lstm", "gru"]),
    (Tied, TIED, ["tanh", "mul"]),
]


@pytest.mark.parametrize(("make", "example", "cuts"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_plan_survives_json_and_makes_the_same_cuts(make: Any, example: Any, cuts: Any, tmp_path: Path) -> None:
    plan = dni_fx.plan(make(), example, cuts=cuts)
    read = dni_fx.Plan.from_json(plan.to_json())
    assert read == plan
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    assert dni_fx.Plan.load(tmp_path / "plan.json") == dni_fx.Plan.load(str(tmp_path)) == plan
    net = dni_fx.transform(make(), example, cuts=read, unlock="none")
    assert net.dni.plan.cuts == plan.cuts
    assert net.dni.plan.segments == plan.segments
    assert net.dni.plan.why == f"a saved plan: {plan.why}"
    assert dni_fx.Plan.from_json(net.dni.plan.to_json()) == net.dni.plan  # with what the rewrite settled
    again = dni_fx.plan(make(), example, cuts=net.dni.plan)
    assert again.why.count("a saved plan") == 1


@pytest.mark.parametrize("cuts", [2, 3, "auto", ["2"], "every:ReLU"])
def test_a_plan_holds_for_any_batch_size(cuts: Any) -> None:
    """Only its costs do not: what is best for 3 rows need not be for 64."""
    plans = [dni_fx.plan(mlp(), torch.rand(n, 6), cuts=cuts) for n in (3, 64)]
    assert plans[0].fingerprint == plans[1].fingerprint
    plans[1] = dni_fx.plan(mlp(), torch.rand(64, 6), cuts=plans[0])
    assert [c.after for c in plans[0].cuts] == [c.after for c in plans[1].cuts]
    assert [s.nodes for s in plans[0].segments] == [s.nodes for s in plans[1].segments]
    assert [c.after for c in dni_fx.plan(mlp(), torch.rand(64, 6), cuts=plans[0]).cuts] == [
        c.after for c in plans[0].cuts
    ]


def test_segments_add_up_to_the_model() -> None:
    for make, example, cuts in CASES:
        model = make()
        plan = dni_fx.plan(model, example, cuts=cuts)
        assert sum(s.parameters for s in plan.segments) == sum(p.numel() for p in model.parameters())
        names = [n for s in plan.segments for n in s.nodes]
        assert len(names) == len(set(names))
        assert [s.nodes[-1] for s in plan.segments[:-1]] == [c.after for c in plan.cuts]
        for cut in plan.cuts:
            for tensor in cut.tensors:
                assert tensor.bytes == 4 * torch.Size(tensor.shape).numel()


def test_flops_and_bytes_are_right() -> None:
    plan = dni_fx.plan(mlp(), X, cuts=["2"])
    below, above = plan.segments
    assert below.flops == 2 * 5 * 6 * 8 + 40 + 40  # linear, batch norm, ReLU
    assert above.flops == 2 * 5 * 8 * 8 * 2 + 40 + 40 + 2 * 5 * 8 * 4
    assert (below.forward, above.forward) == (below.flops, above.flops)
    assert below.backward == 2 * 5 * 6 * 8 + 40 + 40  # the input needs no gradient
    assert above.backward == 2 * (2 * 5 * 8 * 8 * 2 + 2 * 5 * 8 * 4) + 40 + 40
    # Autograd keeps the input of the batch norm, its statistics, and the results of the ReLUs.
    assert below.activation_bytes == 4 * (40 + 2 * 8 + 40)
    assert above.activation_bytes == 4 * (40 + 40)


def test_a_plan_for_another_graph_is_refused() -> None:
    plan = dni_fx.plan(ResNet(), X)
    with pytest.raises(DniFxError, match=r"another graph \(of ResNet\): no node") as caught:
        dni_fx.plan(mlp(), X, cuts=plan)
    assert "dni-fx plan TARGET" in str(caught.value)
    deeper = nn.Sequential(*mlp(), nn.Tanh())  # type: ignore[misc]
    with pytest.raises(DniFxError, match="another graph"):
        dni_fx.plan(deeper, X, cuts=dni_fx.plan(mlp(), X))


UNREADABLE = [
    "", "{", "[]", "null", "3", '"text"', "{}", '{"schema": 1}', '{"schema": 2}', '{"schema": "1"}', "NaN",
    "\ud800",
    '{"schema": 1, "cuts": null}',
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_unreadable_plans(text: str) -> None:
    with pytest.raises(DniFxError, match=r"here\.json is not a plan") as caught:
        dni_fx.Plan.from_json(text, source="here.json")
    assert "\n" not in str(caught.value)


def test_plans_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "binary.json"):
        with pytest.raises(DniFxError, match="cannot read the plan"):
            dni_fx.Plan.load(path)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in items for p in _places(v, (*path, k))]


JUNK: list[Any] = [None, 0, -1, 10**9, 1.5, "", "x", "float99", True, [], {}, [None], {"a": 1}, "relu", [[]], "load"]


def _mutated(rng: random.Random, plan: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(plan)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        *path, last = rng.choice(_places(data))
        holder: Any = data
        for key in path:
            holder = holder[key]
        action = rng.randrange(4)
        if action == 0:
            del holder[last]
        elif action == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice([*JUNK, holder[last]])))
        elif action == 2 and isinstance(holder, dict):
            holder[rng.choice(["extra", "axis", "cuts"])] = copy.deepcopy(rng.choice(JUNK))
        else:
            holder[last] = copy.deepcopy(rng.choice(JUNK))
    return data


@pytest.mark.parametrize("seed", range(2))
def test_corrupted_plans_never_give_anything_but_a_clear_error(seed: int) -> None:
    """However a plan is damaged: it is refused, or it works."""
    rng = random.Random(seed)
    model = LongSkip()
    whole = dni_fx.transform(model, X, cuts=["tanh", "tanh_1"]).dni.plan
    refused = 0
    for _ in range(120):
        text = json.dumps(_mutated(rng, json.loads(whole.to_json())))
        try:
            plan = dni_fx.Plan.from_json(text)
            str(plan)
            if rng.random() < 0.5:
                assert dni_fx.Plan.from_json(plan.to_json()) == plan
            else:
                dni_fx.transform(model, X, cuts=plan)(X)
        except DniFxError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 30 < refused < 120


def test_after_every_layer_that_trains() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)
    )
    plan = dni_fx.plan(model, torch.randn(8, 4), cuts="leaves")
    assert [cut.after for cut in plan.cuts] == ["_0", "_1", "_3_0"]
    with pytest.raises(DniFxError, match="fewer than two layers"):
        dni_fx.plan(nn.Sequential(nn.Linear(4, 4)), torch.randn(8, 4), cuts="leaves")
