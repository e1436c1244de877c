"""What a saved `model.py` calls."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import mlp
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError, SourceError
from dni_fx.store.saved import import_beside, missing, needs_model, read_dni, rebuild, saved_dni


def test_the_submodule_dni_of_a_plan(tmp_path: Path) -> None:
    net = dni_fx.transform(mlp(), torch.rand(5, 6), cuts=["4"])
    (tmp_path / "plan.json").write_text(net.dni.plan.to_json(), encoding="utf-8")
    for made in (saved_dni(net.dni.plan), read_dni(str(tmp_path / "model.py"))):
        assert made.state_dict().keys() == net.dni.state_dict().keys()
    with pytest.raises(DniFxError, match="entry rewrite is empty"):
        saved_dni(replace(net.dni.plan, rewrite=None))


def test_a_file_beside_is_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("answer = 42\n")
    assert import_beside(str(tmp_path / "model.py"), "json.py").answer == 42
    (tmp_path / "json.py").write_text("1 / 0\n")
    with pytest.raises(DniFxError, match=r"json\.py"):
        import_beside(str(tmp_path / "model.py"), "json.py")


def test_a_module_without_its_constructor() -> None:
    class Needs(nn.Module):
        def __init__(self, size: int) -> None:
            raise AssertionError

    made = rebuild(Needs, size=3)
    assert isinstance(made, Needs) and made.size == 3 and not list(made.parameters())


def test_modules_without_a_source_form() -> None:
    with pytest.raises(SourceError, match="model=model"):
        needs_model("model.py")
    with pytest.raises(SourceError, match=r"a\.b is a Linear, and its hook cannot be written"):
        missing("a.b", "Linear", "its hook")
