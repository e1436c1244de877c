"""The functions that a rewritten graph calls by name, so that `print(net.code)` reads as the algorithm.

In: activations, predictions, a segment. Out: the same activations, decoupled.
"""

from typing import Any

from dni_fx.ops.accumulation import LossMeasure
from dni_fx.ops.decouple import ONE_BY_ONE, boundary, decouple, writable
from dni_fx.ops.exit import accumulate, exit_gradients, gradients
from dni_fx.ops.forward_pass import ForwardPass
from dni_fx.ops.gradients import batch_size, clipped, is_readable
from dni_fx.ops.inject import inject
from dni_fx.ops.layout import Layout
from dni_fx.ops.optimizers import parameters_of
from dni_fx.ops.pieces import begin_piece, end_piece
from dni_fx.ops.precision import without_autocast
from dni_fx.ops.segment import Segment, SegmentListener
from dni_fx.ops.specialised import specialised
from dni_fx.ops.steps import CountsSteps
from dni_fx.ops.time import FROM_WINDOW_TO_WINDOW, carry, enter, learn, leave, leaves
from dni_fx.ops.tracing import TRACED, check_not_symbolic, check_not_traced
from dni_fx.ops.unit import begin_unit, decouple_unit

__all__ = [
    "FROM_WINDOW_TO_WINDOW",
    "ONE_BY_ONE",
    "TRACED",
    "CountsSteps",
    "ForwardPass",
    "Layout",
    "LossMeasure",
    "Segment",
    "SegmentListener",
    "accumulate",
    "batch_size",
    "begin_piece",
    "begin_unit",
    "boundary",
    "carry",
    "check_not_symbolic",
    "check_not_traced",
    "clipped",
    "decouple",
    "decouple_unit",
    "end_piece",
    "enter",
    "exit_gradients",
    "gradients",
    "inject",
    "is_readable",
    "learn",
    "leave",
    "leaves",
    "parameters_of",
    "specialised",
    "without_autocast",
    "writable",
]

# Generated code, saved plans and pickles name these by the public module.
_PUBLIC: tuple[Any, ...] = (Segment, begin_unit, decouple, decouple_unit, enter, inject, leave, leaves, specialised)
for _public in (*_PUBLIC, begin_piece, end_piece, writable):
    _public.__module__ = "dni_fx.ops"
