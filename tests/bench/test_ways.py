"""Blocks of a model, and numbers of segments."""

import pytest
from nets import deep
from torch import nn

from dni_fx import DniFxError
from dni_fx.bench.options import parse_segments
from dni_fx.bench.ways import blocks, checkpoint_by_root


def test_blocks() -> None:
    assert blocks(deep()) == [f"1.{i}" for i in range(9)]
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert blocks(plain) == ["0", "1", "2"]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert blocks(nn.Sequential(encoder)) == [f"0.layers.{i}" for i in range(3)]


@pytest.mark.parametrize("text", ["", "1", "two", "2,,3", "-2"])
def test_bad_numbers_of_segments(text: str) -> None:
    with pytest.raises(DniFxError, match="numbers of segments"):
        parse_segments(text)
    assert parse_segments("2, auto") == {"2 segments": 2, "auto": "auto"}


def test_a_refused_model_is_unchanged() -> None:
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16)

    model = nn.ModuleDict({"first": nn.Sequential(block(), block()), "last": nn.ModuleList([block(), block()])})
    before = str(model)
    with pytest.raises(DniFxError, match="the blocks in last are not in a Sequential"):
        checkpoint_by_root(model)
    assert str(model) == before and "forward" not in vars(model["first"][0])
