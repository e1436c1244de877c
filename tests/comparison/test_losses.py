"""The loss that is found for outputs and targets."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dni_fx import DniFxError
from dni_fx.comparison.losses import find_objective

LABELS, POSITIONS = torch.randint(0, 3, (4,)), torch.randint(0, 3, (4, 5))


@pytest.mark.parametrize(
    ("output", "target", "name", "value"),
    [
        (torch.randn(4, 3), LABELS, "cross_entropy", F.cross_entropy),
        (torch.randn(4, 5, 3), POSITIONS, "cross_entropy", lambda o, t: F.cross_entropy(o.transpose(1, 2), t)),
        (torch.randn(4, 3, 5), POSITIONS, "cross_entropy", F.cross_entropy),
        (torch.randn(4, 3), torch.randn(4, 3), "mse_loss", F.mse_loss),
        (torch.tensor(2.5), None, "the model's own loss", lambda o, t: o),
        ({"loss": torch.tensor(2.5)}, None, "the model's own loss", lambda o, t: o["loss"]),
        ((torch.tensor(2.5), torch.zeros(4)), None, "the model's own loss", lambda o, t: o[0]),
    ],
)
def test_by_form(output: Any, target: Any, name: str, value: Any) -> None:
    found = find_objective(None, output, target, has_data=True)
    assert found.name == name
    torch.testing.assert_close(found.function(output, target), value(output, target))


def test_a_given_loss_comes_first() -> None:
    def own(output: Tensor, target: Tensor) -> Tensor:
        return output.sum()

    assert find_objective("l1_loss", torch.ones(2), torch.zeros(2), has_data=True).function is F.l1_loss
    assert find_objective(own, torch.ones(2), None, has_data=True).name == "own"


@pytest.mark.parametrize(
    ("output", "target"),
    [(torch.zeros(4, 3), torch.zeros(4)), ([], LABELS), (torch.ones(4), None), (torch.ones(4, 5, 5), POSITIONS)],
)
def test_an_unknown_form(output: Any, target: Any) -> None:
    with pytest.raises(DniFxError, match="loss="):
        find_objective(None, output, target, has_data=True)
