"""Wrong settings in a saved plan: each gives one line that names the entry."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import two_layers
from windows import Stack, cut

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.store.settled import checked_plan

X = torch.rand(4, 8)

# An entry of the plan, a value, and a part of the message; "[0]" in a path is the first of a list.
WRONG: list[tuple[str, Any, str]] = [
    ("rewrite.unlock", "zzz", "unlock='zzz': there are"),
    ("rewrite.unlock", 3, "unlock"),
    ("rewrite.mix", 7, "mix=7: the share"),
    ("rewrite.mix", True, "mix"),
    ("rewrite.mix", [0.5, 0.1], "mix"),
    ("rewrite.mix", 0.5, "mix=0.5 needs unlock='none'"),
    ("rewrite.classes", 1, "classes must be 2"),
    ("rewrite.classes", 2.5, "classes"),
    ("rewrite.loss", "no_loss", "no such function"),
    ("rewrite.training.every", 0, "every=0"),
    ("rewrite.training.centered", "yes", "centered"),
    ("rewrite.training.optimizer", "Adam", "optimizer"),
    ("rewrite.named", 1, "named"),
    ("rewrite.paths", {"a": 3}, "paths"),
    ("rewrite.synthesizers.0", 3, "synthesizers"),
    ("cuts[0].after", "zzz", "cuts[0].after='zzz'"),
    ("cuts[0].tensors", [], "cuts[0] has no tensors"),
    ("cuts[0].tensors[0].axis", 99, "cuts[0].tensors[0].axis=99, but the tensor has 2 axes"),
    ("cuts[0].tensors[0].axis", "a", "axis"),
    ("cuts[0].tensors[0].shape", [4, -8], "sizes of 1 or more"),
    ("cuts[0].tensors[0].shape", [], "sizes of 1 or more"),
    ("cuts[0].tensors[0].dtype", "int64", "a floating dtype"),
    ("cuts[0].tensors[0].dtype", "load", "a floating dtype"),
    ("cuts[0].tensors[0].bytes", 1, "bytes=1, but the tensor has 128"),
    ("cuts[0].tensors[0].node", "output", "which is no node below the cut"),
    ("segments[0].flops", -1, "segments[0].flops=-1; 0 or more"),
    ("segments[0].peak_backward", None, "peak_backward"),
    ("segments[0].load", float("nan"), ""),
    ("segments[0].nodes", [1], "nodes"),
    ("segments[0].recomputed", [["zzz", "0"]], "segments[0].recomputed[0]=['zzz', '0'], which are no nodes"),
    ("segments", [], "0 segments do not fit 1 cuts"),
    ("frontend", "zzz", "there are fx, export, modules"),
    ("tied", {"0.weight": [5]}, "names a segment"),
    ("inputs", [3], "inputs"),
    ("why", None, "why"),
    ("forecast.unit", 3, "unit"),
    ("verdict", {}, "plan.json"),
]


@pytest.fixture(scope="module")
def plan() -> Any:
    return dni_fx.transform(two_layers(8), X, cuts=["1"], verify=False).dni.plan


def changed(data: Any, path: str, value: Any) -> Any:
    data = copy.deepcopy(data)
    *keys, last = path.replace("[0]", ".0").split(".")
    holder = data
    for key in keys:
        holder = holder[int(key)] if isinstance(holder, list) else holder[key]
    if isinstance(holder, list):
        holder[int(last)] = value
    else:
        holder[last if not last.isdigit() else next(iter(holder))] = value
    return data


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_wrong_entries(path: str, value: Any, message: str, plan: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(changed(json.loads(plan.to_json()), path, value)))
    with pytest.raises(DniFxError) as caught:
        checked_plan(tmp_path)
    assert message in str(caught.value) and "plan.json" in str(caught.value) and "\n" not in str(caught.value)


IN_TIME: list[tuple[str, Any, str]] = [
    ("states[0].tensors[0].axis", 7, "states[0].tensors[0].axis=7"),
    ("states[0].tensors[0].output", -1, "output=-1"),
    ("states[0].tensors[0].path", [None], "path"),
    ("states[0].enters", [9], "names a segment"),
    ("states[0].leaves", -1, "names a segment"),
    ("states[0].tensors", [], "has no tensors"),
    ("rewrite.mix", [0.5, 0.1, 0], "a schedule is"),
]


def test_plans_of_every_kind_are_right_and_wrong_entries_in_time_are_found(tmp_path: Path) -> None:
    net = cut(Stack, cuts=["one"], unlock="none", classes=3, mix=(1.0, 0.0, 5), verify=False)
    (tmp_path / "plan.json").write_text(net.dni.plan.to_json())
    assert checked_plan(tmp_path) == net.dni.plan
    for path, value, message in IN_TIME:
        (tmp_path / "plan.json").write_text(json.dumps(changed(json.loads(net.dni.plan.to_json()), path, value)))
        with pytest.raises(DniFxError) as caught:
            checked_plan(tmp_path)
        assert message in str(caught.value), str(caught.value)
