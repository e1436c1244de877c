"""Submodules, parameters and buffers by path, whatever their names."""

import pytest
import torch
from torch import nn

from dni_fx.model.attributes import at_path, expression, has_path, is_hidden


class Holder(nn.Module):
    """Its class has an attribute of the name of each kind of entry."""

    head = 3

    def __init__(self) -> None:
        super().__init__()
        self._modules["head"] = nn.Sequential(nn.Linear(2, 2))
        self._parameters["compile"] = nn.Parameter(torch.rand(2))
        self._buffers["type"] = torch.rand(2)
        self.add_module("class", nn.Linear(2, 2))
        self.add_module('q"t', nn.Linear(2, 2))
        self.plain = torch.rand(2)


PATHS = {
    "head": "self._modules['head']",
    "head.0": "getattr(self._modules['head'], \"0\")",
    "head.0.weight": "getattr(self._modules['head'], \"0\").weight",
    "compile": "self._parameters['compile']",
    "type": "self._buffers['type']",
    "class": 'getattr(self, "class")',
    'q"t': "getattr(self, 'q\"t')",
    "plain": "self.plain",
    "": "self",
}


@pytest.mark.parametrize("path", PATHS)
def test_the_expression_has_the_value_at_the_path(path: str) -> None:
    model = Holder()
    text = expression("self", model, path)
    assert text == PATHS[path]
    assert eval(text, {"self": model}) is at_path(model, path)


def test_an_entry_comes_before_an_attribute_of_its_class() -> None:
    model = Holder()
    assert model.head == 3 and isinstance(at_path(model, "head"), nn.Sequential)
    assert is_hidden(model, "head") and not is_hidden(model, "class") and not is_hidden(model, "plain")


def test_a_path_without_a_value() -> None:
    assert has_path(Holder(), "head.0.bias") and not has_path(Holder(), "head.1")
    with pytest.raises(AttributeError):
        at_path(Holder(), "absent")
