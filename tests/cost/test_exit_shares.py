"""What exits may take, by the number of segments."""

import pytest

from dni_fx.cost import exit_share, most_for_units


@pytest.mark.parametrize(("segments", "all_exits", "units"), [(2, 0.15, 0.15), (3, 0.15, 0.15), (4, 0.3, 0.2)])
def test_shares(segments: int, all_exits: float, units: float) -> None:
    assert (exit_share(segments), most_for_units(segments)) == (all_exits, units)
