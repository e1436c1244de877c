"""The grammar of `--input`."""

import pytest
import torch

from dni_fx.errors import DniFxError
from dni_fx.model.inputs import describe
from dni_fx.model.specs import parse_specs

GOOD = [
    # text, shape, dtype, lowest, highest (of integers: included)
    ("64x784", (64, 784), torch.float32, None, None),
    ("4", (4,), torch.float32, None, None),
    ("2x3x4x5", (2, 3, 4, 5), torch.float32, None, None),
    (" 2x3 ", (2, 3), torch.float32, None, None),
    ("8x128:int64", (8, 128), torch.int64, 0, 1),
    ("8x128:int64:5-7", (8, 128), torch.int64, 5, 6),
    ("8x128:int32:-3--1", (8, 128), torch.int32, -3, -2),
    ("8x128:int64:0-1", (8, 128), torch.int64, 0, 0),
    ("3x3:bool", (3, 3), torch.bool, 0, 1),
    ("3x3:bfloat16", (3, 3), torch.bfloat16, None, None),
    ("3x3:float64:2-4", (3, 3), torch.float64, 2, 4),
    ("9x9:float32:-1-1", (9, 9), torch.float32, -1, 1),
    ("3x3:complex64", (3, 3), torch.complex64, None, None),
]


@pytest.mark.parametrize(("text", "shape", "dtype", "low", "high"), GOOD)
def test_spec(text: str, shape: tuple[int, ...], dtype: torch.dtype, low: float | None, high: float | None) -> None:
    inputs = parse_specs([text])
    (tensor,) = inputs.args
    assert (tuple(tensor.shape), tensor.dtype, inputs.kwargs) == (shape, dtype, {})
    if low is not None:
        assert low <= tensor.min().item()
        assert tensor.max().item() <= high


def test_specs_with_names() -> None:
    inputs = parse_specs(["2x3", "ids=2x4:int64:0-9", "4x1", "a_1=5"])
    assert describe(inputs) == ("0: 2x3 float32", "1: 4x1 float32", "ids: 2x4 int64", "a_1: 5 float32")


BAD = [
    (["0y3"], "'0y3' is not"),
    ([""], "is not"),
    (["x"], "is not"),
    (["2x"], "is not"),
    (["2x-3"], "is not"),
    (["2,3"], "is not"),
    (["2x3:"], "is not"),
    (["=2x3"], "is not"),
    (["1a=2x3"], "is not"),
    (["2x3:int64:4"], "is not"),
    (["2x3\nx"], "is not"),
    (["2x3:float"], None),  # torch.float: an alias, fine
    (["2x3:floaty"], "'floaty' is no torch dtype"),
    (["2x3:nn"], "'nn' is no torch dtype"),
    (["2x3:Tensor"], "is no torch dtype"),
    (["2x3:int64:5-5"], "the range 5-5 is empty"),
    (["2x3:int64:9-2"], "the range 9-2 is empty"),
    (["2x0x3"], "without entries"),
    (["a=2x3", "a=2x4"], "'a' is given twice"),
    (["2x3:0-4"], None),  # a range without a type: floats
    (["3x3:complex64:0-4"], "complex64"),
    (["3x3:bool:0-7"], "bool"),
    (["2x3:uint8:0-256"], None),
    (["2x3:uint8:0-999"], "uint8"),
    (["2x3:int8:-129-0"], "int8"),
    (["2x3:float8_e4m3fn"], "float8_e4m3fn"),
    (["2x3:qint8"], "qint8"),
    (["99999999x99999999x99999999"], "99999999"),
    (["2x3:int64:0-99999999999999999999"], "99999999999999999999"),
    (["2x3:float32:0-1" + "0" * 400], "float32"),
]


@pytest.mark.parametrize(("texts", "message"), BAD, ids=[repr(c[0])[:40] for c in BAD])
def test_bad_spec(texts: list[str], message: str | None) -> None:
    if message is None:
        assert parse_specs(texts).args[0].shape == (int(texts[0][0]), 3)
        return
    with pytest.raises(DniFxError) as caught:
        parse_specs(texts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
