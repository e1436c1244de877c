"""What runs while a rewritten model trains: the module, `net.dni`, cuts in time, segment steps, DDP.

In: a plan and a captured graph. Out: modules that train.
"""

from dni_fx.runtime.averaging import average_segments
from dni_fx.runtime.crossing import Crossing
from dni_fx.runtime.dni import Interfaces, build_dni
from dni_fx.runtime.flat import Calling, Leaf
from dni_fx.runtime.hooked import HookedModule, Output
from dni_fx.runtime.metrics import log_metrics
from dni_fx.runtime.module import DecoupledModule, adopt, call_original, plain, share_state
from dni_fx.runtime.parameter_groups import attach_synthesizers
from dni_fx.runtime.parameters import hold_parameters
from dni_fx.runtime.retrace import rename, retrace
from dni_fx.runtime.stepping import OptimizerFactory, SegmentOptimizer, check_stepping
from dni_fx.runtime.time_cut import TimeCut, add_time_cuts, time_activation
from dni_fx.runtime.time_horizon import replay_windows
from dni_fx.runtime.time_windows import next_window, placeholders, places

__all__ = [
    "Calling",
    "Crossing",
    "DecoupledModule",
    "HookedModule",
    "Interfaces",
    "Leaf",
    "OptimizerFactory",
    "Output",
    "SegmentOptimizer",
    "TimeCut",
    "add_time_cuts",
    "adopt",
    "attach_synthesizers",
    "average_segments",
    "build_dni",
    "call_original",
    "check_stepping",
    "hold_parameters",
    "log_metrics",
    "next_window",
    "placeholders",
    "places",
    "plain",
    "rename",
    "replay_windows",
    "retrace",
    "share_state",
    "time_activation",
]
