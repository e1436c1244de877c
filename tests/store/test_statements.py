"""Statements of `model.py` for names that Python or a class needs for something else."""

import pytest
import torch
from torch import nn

from dni_fx.store.statements import VALUE, assignment, buffer_statements, class_name, is_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Net", "Net"),
        ("torch", "torch_"),
        ("dni_fx", "dni_fx_"),
        ("class", "class_"),
        ("super", "super_"),
        ("a-b", "a_b"),
        ("1st", "_1st"),
    ],
)
def test_the_name_of_the_class(model: str, name: str) -> None:
    assert class_name(model) == name
    exec(f"class {name}: pass")


@pytest.mark.parametrize("name", ["head", "class", "a-b", 'q"t', "type", "compile"])
@pytest.mark.parametrize("owner", ["self", "self.inner"])
def test_a_statement_gives_a_module_a_child(owner: str, name: str) -> None:
    model = nn.Module()
    model.inner = nn.Module()
    module = model if owner == "self" else model.inner
    setattr(module, name, nn.Linear(2, 2))
    statement = assignment(owner, module, name)
    del module._modules[name]
    child = nn.Linear(3, 3)
    exec(statement.replace(VALUE, "child"), {"self": model, "child": child})
    assert module._modules[name] is child


@pytest.mark.parametrize("name", ["mean", "class", "type"])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_statement_gives_a_module_a_buffer(name: str, persistent: bool) -> None:
    module = nn.Module()
    for statement in buffer_statements("self", name, torch.ones(2), persistent=persistent):
        exec(statement, {"self": module, "torch": torch})
    assert module._buffers[name] is not None and module._buffers[name].shape == (2,)
    assert (name in module.state_dict()) == persistent


def test_names_of_source() -> None:
    assert [is_name(text) for text in ("a", "é", "a-b", "1", "class", "")] == [True, True, False, False, False, False]
