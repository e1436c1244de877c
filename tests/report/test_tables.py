"""Tables in narrow consoles: whole cells, bars in proportion, and texts as they are."""

import io

import pytest
from rich.console import Console

from dni_fx.plans import CrossingTensor, Cut, Forecast, Outlook, Plan, SegmentPlan, Verdict, Weighed
from dni_fx.report.plan import plan_table
from dni_fx.report.tables import Fitted, add_row, hanging, plain_table

KIB = 1024
BLOCKS = " ▏▎▍▌▋▊▉█"


def printed(renderable: object, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text().splitlines()


def made_plan(peaks: list[float], unit: str = "FLOPs", name: str = "blocks.3.relu") -> Plan:
    times = [time * (1e-13 if unit == "s" else 1) for time in (1.23e11, 2.46e11, 1.2e10)]
    segments = tuple(
        SegmentPlan((name,) * 123, 10**8, 10**12, 5, *times, 1.0, round(peak * KIB), "x") for peak in peaks
    )
    cut = Cut(name, (CrossingTensor(name, (128, 1024, 1024), "bfloat16", 999 * KIB**2, 1),))
    outlook = Outlook(999 * KIB**2, 9.99e11, 9.99e11)
    weighed = Weighed((name,) * 9, 9, 9.99e8, 9.9e7, 0.0123, outlook)
    verdict = Verdict("memory", 99, 1.0, 0.05, (weighed, weighed))
    forecast = Forecast(unit, KIB**2, KIB**2, 0, outlook, outlook)
    cuts = (cut,) * (len(peaks) - 1)
    return Plan("Net", "f", (f"0: {name}",), "given", cuts, segments, "auto", forecast=forecast, verdict=verdict)


def eighths(line: str) -> int:
    return sum(BLOCKS.index(character) for character in line if character in BLOCKS[1:])


@pytest.mark.parametrize("unit", ["FLOPs", "s"])
def test_nothing_is_cropped_at_80_columns(unit: str) -> None:
    plan = made_plan([38.8, 54.3, 1023], unit)
    lines = printed(plan_table(plan))
    text = "\n".join(lines)
    assert all(len(line) <= 80 for line in lines) and "…" not in text
    for part in ("segment", "nodes", "params", "forward", "backward", "synth.", "38.8 KiB", "1023 KiB", "999 MiB"):
        assert part in text, part


def test_bars_are_in_proportion_to_bytes() -> None:
    for peaks in ([38.8, 54.3], [1, 2, 3, 4], [0, 1000], [5]):
        lines = [line for line in printed(plan_table(made_plan(peaks))) if "KiB" in line or " 0 B" in line]
        for peak, line in zip(peaks, lines, strict=False):
            assert abs(eighths(line) - 128 * peak / max(peaks)) <= 1, line


def test_a_narrow_console_leaves_the_least_needed_columns_out() -> None:
    for width in (30, 40, 50, 60, 70):
        lines = printed(plan_table(made_plan([38.8, 54.3])), width)
        text = "\n".join(lines)
        assert all(len(line) <= width for line in lines) and "…" not in text
        if width >= 40:
            assert "38.8 KiB" in text and eighths(next(line for line in lines if "54.3" in line)) == 128
    assert "nodes" not in "\n".join(printed(plan_table(made_plan([38.8, 54.3])), 66))


def test_bars_in_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    Console(file=file, width=80).print(plan_table(made_plan([20, 40])))
    file.seek(0)
    assert [line.count("#") for line in file.read().splitlines() if "KiB" in line][:2] == [8, 16]


def test_texts_are_no_markup() -> None:
    odd = "[b]:end:[/x]"
    lines = "\n".join(printed(plan_table(made_plan([1, 2], name=odd)), 200))
    assert lines.count(odd) >= 4
    table = plain_table(odd, (odd,))
    add_row(table, odd)
    assert "\n".join(printed(table)).count(odd) == 3


def test_long_words_are_folded() -> None:
    table = plain_table("", ("a", "b"))
    add_row(table, "x" * 100, "y" * 100)
    text = "".join(printed(Fitted([table]), 40))
    assert text.count("x") == text.count("y") == 100


@pytest.mark.parametrize("count", [3, 12, 13, 40])
def test_long_tables_are_abridged(count: int) -> None:
    plan = made_plan([1.0] * count)
    rows = [line for line in printed(plan_table(plan), 120) if line.endswith("████████████████ ")]
    assert len(rows) == (count if count <= 12 else 11)
    text = "\n".join(printed(plan_table(plan), 120))
    assert (f"{count - 11} more: --all" in text) == (count > 12)
    whole = "\n".join(printed(plan_table(plan, whole=True), 120))
    assert "--all" not in whole and f" {count - 1} " in whole


def test_a_long_text_hangs() -> None:
    console = Console(width=20)
    assert hanging("a = some_call(first, second, third)", console, 20, 20) == [
        "a = some_call(first,",
        "  second, third)",
    ]
    assert hanging("short", console, 10, 20) == ["short"] and hanging("", console, 10, 20) == [""]
    assert "".join(part.strip() for part in hanging("x" * 50, console, 12, 20)) == "x" * 50
