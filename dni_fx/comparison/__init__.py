"""Train a model by backprop, with checkpointing and cut, beside each other: what decoupling costs, and what it gains.

In: a model, batches. Out: losses, scores, memory and time of each way, and a verdict.
"""

from dni_fx.comparison.batches import Batch, Stream
from dni_fx.comparison.losses import find_objective
from dni_fx.comparison.record import Comparison, Difference, Record
from dni_fx.comparison.run import compare
from dni_fx.comparison.table import Curves, comparison_table, comparison_view, curves, figures, plot_comparison
from dni_fx.comparison.trainee import MakeOptimizer, Random
from dni_fx.comparison.verdict import best_cut, verdict

__all__ = [
    "Batch",
    "Comparison",
    "Curves",
    "Difference",
    "MakeOptimizer",
    "Random",
    "Record",
    "Stream",
    "best_cut",
    "compare",
    "comparison_table",
    "comparison_view",
    "curves",
    "figures",
    "find_objective",
    "plot_comparison",
    "verdict",
]
