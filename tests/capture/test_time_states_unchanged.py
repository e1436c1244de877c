"""States that the model returns unchanged, or makes without the state, together with a cut in depth."""

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
ZERO = torch.zeros(6, 5)


class Unchanged(nn.Module):
    """Uses the second state above the cut after `m` alone, and returns it as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.m, self.o, self.f = nn.GRUCell(4, 5), nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.g(x, h)
        return self.o(torch.relu(self.m(h))) + c[:, :3], h, c


class InTuple(Unchanged):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        y, h, c = super().forward(x, h, c)
        return y, (h, c)


class MadeBelow(Unchanged):
    """Makes the next value of `c` below the cut, from `x` alone."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following = self.f(x)
        y, h, _ = super().forward(x, h, c)
        return y, h, following


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_that_is_returned_unchanged(frontend: str, unlock: str, nested: bool) -> None:
    model = InTuple() if nested else Unchanged()
    state = True if nested else {"h": 1, "c": 2}
    arguments = (X, (ZERO, ZERO)) if nested else (X, ZERO, ZERO)
    net = dni_fx.transform(model, arguments, cuts=["m"], state=state, frontend=frontend, unlock=unlock)
    assert [(plan.enters, plan.leaves) for plan in net.dni.plan.states] == [((0,), 0), ((1,), 1)]
    expected = model(*arguments)
    torch.testing.assert_close(net(*arguments), expected)
    if unlock == "backward":
        assert dni_fx.check(net, arguments)


def test_a_state_that_leaves_below_the_segment_that_it_enters_is_refused() -> None:
    with pytest.raises(DniFxError, match=r"state 'c' gets its next value in segment 0, below segment 1"):
        dni_fx.transform(MadeBelow(), (X, ZERO, ZERO), cuts=["m"], state={"h": 1, "c": 2}, frontend="fx")
