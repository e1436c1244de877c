"""From a model and its inputs to an annotated graph that computes the same.

In: a module and example inputs. Out: a `DecoupledModule` whose nodes have records, or a `CaptureError`.
"""

from dni_fx.capture.annotate import annotate
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.by_modules import capture_by_modules
from dni_fx.capture.frontends import capture, check_frontend
from dni_fx.capture.time_states import StateOption, by_segments, find_state, states_alone

__all__ = [
    "StateOption",
    "annotate",
    "by_segments",
    "capture",
    "capture_by_fx",
    "capture_by_modules",
    "check_frontend",
    "find_state",
    "states_alone",
]
