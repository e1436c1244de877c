"""The table of a plan."""

import io

from rich.console import Console
from windows import Lstm, cut

from dni_fx.report.plan import plan_table


def test_it_is_reported() -> None:
    text = Console(width=200, record=True, file=io.StringIO())
    text.print(plan_table(cut(Lstm).dni.plan))
    assert "time0: state 2x3x4, state 2x3x4, cut in time, synthesizer least_squares" in text.export_text()
