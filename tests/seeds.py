"""Seeds of random cases, most of them for the slow tests."""

from typing import Any

import pytest


def seeds(quick: int, count: int) -> list[Any]:
    """The numbers below `count`; from `quick` on, marked slow."""
    return [pytest.param(seed, marks=pytest.mark.slow if seed >= quick else ()) for seed in range(count)]
