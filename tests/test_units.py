"""Amounts as people write and read them."""

import pytest

from dni_fx.errors import DniFxError
from dni_fx.units import parse_bytes, quantity


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("64k", 64_000),
        (" 7 ki ", 7 * 1024),
        ("1048576", 1048576),
        (1048576, 1048576),
        ("10B", 10),
        (".5MiB", 2**19),
    ],
)
def test_parse_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "1e9", "2iB", "GiB", "1 2", "1GiBs", "nan", True, None])
def test_no_amounts(text: object) -> None:
    with pytest.raises(DniFxError, match="is no amount of memory: write 2GiB"):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "unit", "base", "shown"),
    [
        (0, "", 1000, "0"),
        (999, "FLOPs", 1000, "999 FLOPs"),
        (1234, "FLOPs", 1000, "1.23 kFLOPs"),
        (2**20, "B", 1024, "1 MiB"),
        (1023 * 2**20, "B", 1024, "1023 MiB"),
        (0.0025, "s", 1000, "2.5 ms"),
        (12.5, "s", 1000, "12.5 s"),
        (3e-6, "s", 1000, "3 µs"),
    ],
)
def test_quantity(value: float, unit: str, base: int, shown: str) -> None:
    assert quantity(value, unit, base=base) == shown
