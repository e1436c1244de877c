"""Synthesizers of the interface that pytorch-dni has."""

from typing import Any

import pytest
import torch
from made import CPU
from nets import two_layers
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation
from dni_fx.synthesizers.foreign import adapt

X = torch.randn(6, 8)


class Older(nn.Module):
    """Counts its calls in `hidden`; flattens what it gives."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, bias: bool = True) -> None:
        super().__init__()
        self.sizes = input_size, hidden_size, output_size, bias
        self.net = nn.Linear(input_size, output_size, bias=bias)

    def forward(self, input: Tensor, hidden: Any) -> Any:
        calls = torch.zeros(1) if hidden is None else hidden["calls"] + 1
        return self.net(input).flatten(0, -2) + calls, {"calls": calls}


def test_the_older_interface() -> None:
    factory = adapt(Older, hidden_size=3, bias=False)
    assert factory.__name__ == "Older"
    synthesizer: Any = factory(Activation((4, 5, 6), torch.float32, CPU, 2), 2)
    assert synthesizer.module.sizes == (8, 3, 6, False)
    h, context = torch.randn(4, 5, 6), torch.randn(4, 5, 2)
    first = synthesizer(h, context)
    torch.testing.assert_close(first, synthesizer.module.net(torch.cat([h, context], -1)))
    torch.testing.assert_close(synthesizer(h, context), first + 1)
    synthesizer.reset()
    torch.testing.assert_close(synthesizer(h, context), first)
    torch.testing.assert_close(synthesizer(h[:2], context[:2]), first[:2])
    channels: Any = factory(Activation((4, 6, 5), torch.float32, CPU, 1), 0)
    assert channels(torch.randn(4, 6, 5)).shape == (4, 6, 5)
    net = dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=factory)
    assert dni_fx.check(net, X)


def test_an_older_synthesizer_of_the_wrong_size() -> None:
    class Narrow(Older):
        def forward(self, input: Tensor, hidden: Any) -> Any:
            return self.net(input)[..., :2], None

    with pytest.raises(DniFxError, match="Narrow gave"):
        dni_fx.transform(two_layers(8), X, cuts=["1"], synthesizer=adapt(Narrow))
