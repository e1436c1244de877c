"""What `bench` shows."""

import io

from rich.console import Console

from dni_fx.bench.measure import Ratio, Row
from dni_fx.bench.table import bench_table, bench_verdict, spark


def test_a_spark_shows_the_most_of_each_part() -> None:
    assert spark([0, 8, 4, 0] * 6, 8)[:2] == "█▄"
    assert len(spark([1], 1)) == len(spark(range(100), 99))


def test_nothing_is_cropped_at_80_columns() -> None:
    rows = [
        Row("backprop", 99_999 * 2**20, 99_999 * 2**20, 1.0, Ratio(1.0, 1.0, 1.0), (1, 2, 3)),
        Row("checkpointed blocks, [b]:end:", 12_345 * 2**20, 12_345 * 2**20, 1.0, Ratio(123.4, 99.0, 999.9), (3, 2, 1)),
        Row("auto", failed="[b]:end:"),
    ]
    for width in (40, 60, 80, 120):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(bench_table(rows))
        text = console.export_text()
        assert "…" not in text and all(len(line) <= width for line in text.splitlines())
        assert "not measured: auto: [b]:end:" in text
        if width >= 80:
            assert "12345.0 -88 %" in text and "99.00-999.90" in text and "[b]:end:" in text


def test_the_verdict_names_the_lightest() -> None:
    backprop, ratio = Row("backprop", 100, 100, 1.0, Ratio(1.0, 1.0, 1.0)), Ratio(1.5, 1.0, 2.0)
    exact, heavy = Row("checkpointed blocks", 30, 40, 1.0, ratio), Row("2 segments", 90, 90, 1.0, ratio)
    light, failed = Row("auto", 50, 60, 1.0, ratio), Row("4 segments", failed="no")
    (text,) = bench_verdict([backprop, exact, heavy, light, failed])
    assert "(auto), a step holds 50 %" in text and "checkpointed blocks, holds 30 %" in text and "1.50 times" in text
    assert "save no memory" in bench_verdict([backprop, Row("auto", 100, 60, 1.0, ratio)])[0]
    assert bench_verdict([backprop, exact, failed]) == []
