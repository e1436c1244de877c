"""Measure memory and time of a training step, for several ways to train.

In: a model and its inputs. Out: a row of numbers for each way.
"""

from dni_fx.bench.live_bytes import training_peak
from dni_fx.bench.measure import Row, measure
from dni_fx.bench.options import Options, mean_square, parse_segments, segments, target_for
from dni_fx.bench.simulate import Simulation, simulate, simulation_table
from dni_fx.bench.table import bench_table, bench_verdict, check_plot, plot, save_picture, to_dict
from dni_fx.bench.ways import (
    checkpoint_blocks,
    checkpoint_by_root,
    context_for,
    copied_model,
    labels_for,
    ways,
)

__all__ = [
    "Options",
    "Row",
    "Simulation",
    "bench_table",
    "bench_verdict",
    "check_plot",
    "checkpoint_blocks",
    "checkpoint_by_root",
    "context_for",
    "copied_model",
    "labels_for",
    "mean_square",
    "measure",
    "parse_segments",
    "plot",
    "save_picture",
    "segments",
    "simulate",
    "simulation_table",
    "target_for",
    "to_dict",
    "training_peak",
    "ways",
]
