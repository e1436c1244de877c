"""What `bench` shows."""

from dni_fx.bench.table import spark


def test_a_spark_shows_the_most_of_each_part() -> None:
    assert spark([0, 8, 4, 0] * 6, 8)[:2] == "█▄"
    assert len(spark([1], 1)) == len(spark(range(100), 99))
