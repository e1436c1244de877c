"""The calling convention of an exported graph: which calls it takes, and its text."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from dni_fx.errors import SourceError
from dni_fx.model import canonical
from dni_fx.runtime.flat import Calling, Leaf


def forward(x: Any, y: Any, scale: float = 1.0) -> Any:
    return x, y, scale


def calling(**changes: Any) -> Calling:
    arguments = pytree.tree_structure(canonical(forward, (0, 0), {"scale": 0}))
    leaves = (Leaf("x", ("s0", 3)), Leaf("y", ("s0",)), Leaf("scale", None, 2.0))
    return Calling(**{"arguments": arguments, "leaves": leaves, "result": pytree.tree_structure([0, 0])} | changes)


def test_tensors_of_a_call_in_order() -> None:
    x, y = torch.rand(5, 3), torch.rand(5)
    found = calling().flatten(forward, (x, y), {"scale": 2.0})
    assert len(found) == 2 and found[0] is x and found[1] is y
    assert calling().unflatten([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("args", "scale", "message"),
    [
        ((torch.rand(5, 3), torch.rand(4)), 2.0, "'y' has size 4 along axis 0, not 5, as another argument has it"),
        ((torch.rand(5, 4), torch.rand(5)), 2.0, "'x' has size 4 along axis 1, not 3, which the capture had to fix"),
        ((torch.rand(5, 3), torch.rand(5, 1)), 2.0, "'y' was a tensor of 1 axes"),
        ((torch.rand(5, 3), torch.rand(5)), 3.0, "'scale' was 2.0 when the model was captured and is 3.0 now"),
        (((torch.rand(5, 3),), torch.rand(5)), 2.0, "'x' was a tensor when .* and is a tuple of 1 now"),
        ((torch.rand(5, 3), None), 2.0, "'y' was a tensor when .* and is None now"),
    ],
)
def test_another_call_is_refused(args: Any, scale: float, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        calling().flatten(forward, args, {"scale": scale})


def test_a_guard() -> None:
    guarded = calling(guards=("L['x'].size()[0] <= 5",))
    guarded.flatten(forward, (torch.rand(5, 3), torch.rand(5)), {"scale": 2.0})
    with pytest.raises(TypeError, match=r"another branch where not \['x'\].size\(\)\[0\] <= 5"):
        guarded.flatten(forward, (torch.rand(6, 3), torch.rand(6)), {"scale": 2.0})


def test_text_and_back() -> None:
    made = calling(guards=("True",))
    assert Calling.from_text(made.to_text()) == pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) is made
    with pytest.raises(SourceError, match="calling convention"):
        calling(leaves=(Leaf("x", None, object()),)).to_text()
