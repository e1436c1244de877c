"""Measure memory and time of a training step, for several ways to train.

In: a model and its inputs. Out: a row of numbers for each way.
"""

from dni_fx.bench.measure import Row, measure
from dni_fx.bench.table import bench_table, check_plot, plot, to_dict
from dni_fx.bench.ways import Options, parse_segments, segments, ways

__all__ = [
    "Options",
    "Row",
    "bench_table",
    "check_plot",
    "measure",
    "parse_segments",
    "plot",
    "segments",
    "to_dict",
    "ways",
]
