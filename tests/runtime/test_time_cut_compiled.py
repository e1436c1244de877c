"""A cut in time under torch.compile: each window trains as the plain net does."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from windows import DOUBLE, IN_DEPTH, WINDOWS, Cell, T, X, cut, window

import dni_fx


def trained(net: Any, make: Any) -> dict[str, Tensor]:
    """All gradients of four windows, in which one row begins anew by the mask, and then all do."""
    generator, state = torch.Generator().manual_seed(2), make.begin()
    with torch.no_grad():
        for parameter in net.dni.parameters():  # the last layer begins at zero
            parameter.copy_(torch.randn(parameter.shape, dtype=DOUBLE, generator=generator))
    for k in range(WINDOWS):
        loss, state = window(net, k, state)
        loss.backward()
        if k == 1:
            net.dni.reset(torch.tensor([False, True, False]))
        if k == 2:
            net.dni.reset()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
@pytest.mark.parametrize(
    ("frontend", "options"),
    [
        ("fx", IN_DEPTH),
        ("modules", {}),
        pytest.param("fx", {}, marks=pytest.mark.slow),
        pytest.param("export", {}, marks=pytest.mark.slow),
        pytest.param("export", IN_DEPTH, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_and_plain_train_alike(options: dict[str, Any], frontend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    nets = [cut(Cell, frontend=frontend, **options, **compiled) for compiled in ({}, {"compile": {"backend": counter}})]
    plain, compiled = (trained(net, Cell) for net in nets)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)
    assert (
        counter.frame_count == 2
    )  # what is between the ends, with a state that carries no gradient, and one that does
    assert dni_fx.check(nets[1], (Cell.begin(), X[:, :T]))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_windows_are_not_one_graph() -> None:
    torch._dynamo.reset()
    net = cut(Cell, unlock="none", compile={"backend": "eager", "fullgraph": True})
    with pytest.raises(Exception, match="remembers the window before"):
        window(net, 0, Cell.begin())
