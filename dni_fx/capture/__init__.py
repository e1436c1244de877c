"""Capture a model as an annotated graph that computes the same values.

In: a module and example inputs. Out: a `DecoupledModule` whose nodes have records, or a `CaptureError`.
"""

from dni_fx.capture.again import Recapture
from dni_fx.capture.annotate import annotate
from dni_fx.capture.axes import (
    Run,
    batch_size,
    runs_at_other_batch_sizes,
    runs_at_other_lengths,
    sizes_near_first,
    warn_of_time_first_inputs,
)
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.by_modules import capture_by_modules
from dni_fx.capture.found_inputs import labels_of, possible_state
from dni_fx.capture.frontends import Capture, capture, check_frontend
from dni_fx.capture.order import find_order, warn_of_rows
from dni_fx.capture.places import line_of_node
from dni_fx.capture.time_states import StateOption, find_state, plan_time_cuts

__all__ = [
    "Capture",
    "Recapture",
    "Run",
    "StateOption",
    "annotate",
    "batch_size",
    "capture",
    "capture_by_fx",
    "capture_by_modules",
    "check_frontend",
    "find_order",
    "find_state",
    "labels_of",
    "line_of_node",
    "plan_time_cuts",
    "possible_state",
    "runs_at_other_batch_sizes",
    "runs_at_other_lengths",
    "sizes_near_first",
    "warn_of_rows",
    "warn_of_time_first_inputs",
]
