"""The synthesizer that `auto` chooses for a cut in time."""

from typing import Any

import pytest
import torch
from windows import DOUBLE, FRONTENDS, Linear, Lstm, T, X

import dni_fx


def test_what_auto_is_for_a_large_state() -> None:
    for features, wanted in ((2048, "least_squares"), (2049, "mlp")):
        example = torch.zeros(2, features), torch.zeros(2, features)
        net: Any = dni_fx.transform(Linear(0.5).float(), example, state=True, verify=False)
        assert net.dni.plan.rewrite.synthesizers == {"time0": wanted}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_what_auto_is(frontend: str) -> None:
    for dtype, wanted in ((DOUBLE, "least_squares"), (torch.bfloat16, "mlp")):
        example = X[:, :T].to(dtype), tuple(tensor.to(dtype) for tensor in Lstm.begin())
        net: Any = dni_fx.transform(Lstm().to(dtype), example, state=True, frontend=frontend)
        assert net.dni.plan.rewrite.synthesizers == {"time0": wanted}
