"""Every changed byte of a saved folder is found, in whichever file it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import two_layers
from windows import Lstm, cut

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.store.digests import check_digests, with_digests

X = torch.rand(4, 8)

NAMES = ["graph.diff", "model.py", "plan.json", "weights.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "out"
    dni_fx.save(dni_fx.transform(two_layers(8), X, cuts=["1"], verify=False), folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_found(name: str, saved: Path, tmp_path: Path) -> None:
    whole = (saved / name).read_bytes()
    shutil.copytree(saved, tmp_path / "out")
    for place in range(0, len(whole), max(1, len(whole) // 20)):
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        if name == "plan.json" and whole[place : place + 1].isspace():
            continue  # an entry has no spaces
        (tmp_path / "out" / name).write_bytes(flipped)
        with pytest.raises(DniFxError) as caught:
            dni_fx.load(tmp_path / "out")
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_longer_file_is_found(name: str, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out")
    with (tmp_path / "out" / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DniFxError, match=name):
        dni_fx.load(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(DniFxError, match=name):
        dni_fx.load(tmp_path / "out")


def test_the_model_does_not_run_before_its_digest_is_compared(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out")
    (tmp_path / "out/model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DniFxError, match=r"model\.py was changed or damaged"):
        dni_fx.load(tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_without_digests_a_folder_loads_as_it_is(saved: Path, tmp_path: Path) -> None:
    """As folders that 0.1.0 wrote; the error of a changed folder names this way out."""
    shutil.copytree(saved, tmp_path / "out")
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    del plan["digests"]
    (tmp_path / "out/plan.json").write_text(json.dumps(plan))
    assert not check_digests(tmp_path / "out", ())
    dni_fx.load(tmp_path / "out")
    for change, reason in (
        ({"fingerprint": "0" * 16}, "fingerprint is not that of the graph"),
        ({"segments": [plan["segments"][0], plan["segments"][1] | {"nodes": ["output"]}]}, "list of nodes is not that"),
    ):
        (tmp_path / "out/plan.json").write_text(json.dumps(plan | change))
        with pytest.raises(DniFxError, match=reason):
            dni_fx.load(tmp_path / "out")


@pytest.mark.parametrize("digests", [None, 3, {}, {"plan.json": "0"}, {"../x": "0"}], ids=str)
def test_wrong_entries(digests: Any, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out")
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    wrong = digests if not isinstance(digests, dict) or not digests else plan["digests"] | digests
    (tmp_path / "out/plan.json").write_text(json.dumps(plan | {"digests": wrong}))
    with pytest.raises(DniFxError, match=r"plan\.json (is damaged|was changed)"):
        dni_fx.load(tmp_path / "out")


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_the_fingerprint_of_a_loaded_graph_is_the_same(frontend: str, tmp_path: Path) -> None:
    """Else folders without digests would not load."""
    model = two_layers(8)
    cuts: Any = 2 if frontend == "export" else ["1"]
    net = dni_fx.transform(model, X, cuts=cuts, frontend=frontend, verify=False)
    dni_fx.save(net, tmp_path / "out")
    (tmp_path / "out/plan.json").write_text(net.dni.plan.to_json())
    dni_fx.load(tmp_path / "out", None if frontend == "fx" else model)


def test_a_cut_in_time_loads_without_digests(tmp_path: Path) -> None:
    """Its graph, restored, is not the one that the fingerprint is of."""
    net: Any = cut(Lstm, verify=False)
    dni_fx.save(net, tmp_path / "out")
    (tmp_path / "out/plan.json").write_text(net.dni.plan.to_json())
    assert dni_fx.load(tmp_path / "out").dni.plan == net.dni.plan


def test_the_plan_is_still_read_as_a_plan(saved: Path) -> None:
    plan = dni_fx.Plan.load(saved)
    assert dni_fx.Plan.from_json(with_digests(plan.to_json(), saved)) == plan
    assert (saved / "plan.json").read_text().endswith('"\n  }\n}\n')
