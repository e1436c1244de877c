"""Numbers with units, as people write and read them."""

import re

from dni_fx.errors import DniFxError, described

__all__ = ["bytes_text", "parse_bytes", "quantity"]

_PREFIXES: dict[int, tuple[str, ...]] = {1000: ("", "k", "M", "G", "T"), 1024: ("", "Ki", "Mi", "Gi", "Ti")}


def quantity(value: float, unit: str = "", *, base: int = 1000) -> str:
    """A number with three figures and a prefix: 1.23 M, 64.0 KiB, 2.5 ms."""
    prefixes = _PREFIXES[base]
    if unit == "s":
        value, prefixes = value * 1e6, ("µ", "m", "")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value /= base
        power += 1
    number = f"{value:.0f}" if power == 0 or value >= 1000 else f"{value:.3g}"
    return f"{number} {prefixes[power]}{unit}".strip()


def bytes_text(size: float) -> str:
    """An amount of memory: 1.5 MiB."""
    return quantity(size, "B", base=1024)


def parse_bytes(text: str | int) -> int:
    """The number of bytes in "2GiB", "1.5 GB", "512MiB" or 1048576.

    Raises:
        DniFxError: If the text is no amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise DniFxError(f"{described(text)} is no amount of memory: write 2GiB, 512MiB, 1.5GB or a number of bytes")
    base = 1024 if match[3] else 1000
    power = " kmgt".index(match[2].lower() or " ")
    amount: float = float(match[1]) * base**power
    if amount >= 2**63:
        raise DniFxError(f"{described(text)} is more memory than any machine has")
    return round(amount)
