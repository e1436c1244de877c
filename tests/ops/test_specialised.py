"""Values of arguments that a capture fixed: a change is refused."""

from typing import Any

import pytest
import torch
from nets import Arguments

import dni_fx

torch.manual_seed(0)  # unlucky weights let no gradient through, and a wrong one would not be seen
X = torch.rand(4, 6)

CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"double": True}, {"double": False}, "double"),
    ({"double": True}, {}, "double"),  # not given: the model's own default
    ({}, {"double": True}, "double"),
    ({"mode": "shifted"}, {"mode": "plain"}, "mode"),
    ({}, {"mask": torch.rand(4, 6)}, "mask"),
    ({"mask": None}, {"mask": torch.rand(4, 6)}, "mask"),
]


@pytest.mark.parametrize(("traced", "called", "name"), CHANGED)
def test_flags_are_specialised_and_changes_refused(traced: Any, called: Any, name: str) -> None:
    net = dni_fx.transform(Arguments(), X, cuts=2, example_kwargs=traced)
    net(X, **traced)
    with pytest.raises(TypeError, match=f"argument '{name}' was"):
        net(X, **called)
