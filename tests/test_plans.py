"""Plans that are saved, read, applied again, or damaged."""

import copy
import inspect
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import LongSkip, Recurrent, ResNet, Tied, mlp
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.plans import Cut, Rewrite, SegmentPlan

torch.manual_seed(0)
X = torch.rand(5, 6)
TIED = (torch.randint(0, 10, (5, 7)), torch.rand(5, 7))

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


def test_a_plan_for_another_graph_is_refused() -> None:
    plan = dni_fx.plan(ResNet(), X, cuts=2)
    with pytest.raises(DniFxError, match=r"another graph \(of ResNet\): no node") as caught:
        dni_fx.plan(mlp(), X, cuts=plan)
    assert "dni-fx plan TARGET" in str(caught.value)
    deeper = nn.Sequential(*mlp(), nn.Tanh())  # type: ignore[misc]
    for cuts in (2, "auto"):  # "auto" makes no cut
        with pytest.raises(DniFxError, match="another graph"):
            dni_fx.plan(deeper, X, cuts=dni_fx.plan(mlp(), X, cuts=cuts))


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


def test_a_plan_is_shown_in_one_line_and_its_fields_are_documented() -> None:
    plan = dni_fx.plan(mlp(), X, cuts=3)
    names = ", ".join(cut.after for cut in plan.cuts)
    assert repr(plan) == f"Plan({plan.model}: 3 segments, cut after {names}, front end fx)"
    many = dni_fx.plan(nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(6, 6), nn.Tanh())]), X, cuts=16)
    assert len(repr(many)) < 120 and "and 12 more" in repr(many) and "\n" not in repr(many)
    assert "unlock none" in repr(dni_fx.transform(mlp(), X, cuts=2, unlock="none").dni.plan)
    for cls in (dni_fx.Plan, SegmentPlan, Cut, Rewrite):
        documented = set(re.findall(r"^    (\w+): ", inspect.getdoc(cls) or "", re.MULTILINE))
        assert documented == set(cls.__dataclass_fields__), cls


def test_a_plan_with_values_of_other_types_is_refused() -> None:
    data = json.loads(dni_fx.plan(mlp(), X, cuts=3).to_json())
    for path in (("segments", 0, "peak_bytes"), ("cuts", 0, "tensors", 0, "shape"), ("forecast", "unit"), ("why",)):
        wrong = copy.deepcopy(data)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = {"a": 1}
        with pytest.raises(DniFxError, match=f"is not a plan that dni-fx wrote: {'.'.join(map(str, path))} is"):
            dni_fx.Plan.from_json(json.dumps(wrong))
