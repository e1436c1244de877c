"""What runs while a rewritten model trains: the module, `net.dni`, cuts in time, segment steps, DDP.

In: a plan and a captured graph. Out: modules that train.
"""

from dni_fx.runtime.attributes import share_state
from dni_fx.runtime.context_source import check_source
from dni_fx.runtime.crossing import Crossing
from dni_fx.runtime.dni import Dni, build_dni
from dni_fx.runtime.exit_loss import is_cross_entropy, is_linear
from dni_fx.runtime.exits import Exit
from dni_fx.runtime.flat import Calling, FlatCapture, FlatModule, Leaf
from dni_fx.runtime.generated import free_reserved_name, is_reserved, unusable_argument
from dni_fx.runtime.hooked import HookedCapture, HookedModule, Output
from dni_fx.runtime.metrics import log_metrics
from dni_fx.runtime.module import DecoupledModule, Stamp, make_module, not_rewritten, plain, rewritten, rewritten_in
from dni_fx.runtime.optimizers import check_stepping
from dni_fx.runtime.outputs import ReturnedIndex, ReturnedValue
from dni_fx.runtime.parameter_groups import OptimizerFactory, attach_synthesizers
from dni_fx.runtime.pieces import NOT_COMPILED
from dni_fx.runtime.prepare import prepare_training
from dni_fx.runtime.retrace import rename, retrace
from dni_fx.runtime.sharding import end_backward, forget_whole_parameters, keep_whole_in_part
from dni_fx.runtime.shards import check_means, shard_segments
from dni_fx.runtime.stages import Part, keep_out_of_state_dict, part_graph, segment_parts, segments
from dni_fx.runtime.stepping import SegmentOptimizer
from dni_fx.runtime.time_cut import TimeCut, add_time_cuts, time_cuts
from dni_fx.runtime.time_windows import next_window, state_indices

__all__ = [
    "NOT_COMPILED",
    "Calling",
    "Crossing",
    "DecoupledModule",
    "Dni",
    "Exit",
    "FlatCapture",
    "FlatModule",
    "HookedCapture",
    "HookedModule",
    "Leaf",
    "OptimizerFactory",
    "Output",
    "Part",
    "ReturnedIndex",
    "ReturnedValue",
    "SegmentOptimizer",
    "Stamp",
    "TimeCut",
    "add_time_cuts",
    "attach_synthesizers",
    "build_dni",
    "check_means",
    "check_source",
    "check_stepping",
    "end_backward",
    "forget_whole_parameters",
    "free_reserved_name",
    "is_cross_entropy",
    "is_linear",
    "is_reserved",
    "keep_out_of_state_dict",
    "keep_whole_in_part",
    "log_metrics",
    "make_module",
    "next_window",
    "not_rewritten",
    "part_graph",
    "plain",
    "prepare_training",
    "rename",
    "retrace",
    "return_state",
    "rewritten",
    "rewritten_in",
    "segment_parts",
    "segments",
    "shard_segments",
    "share_state",
    "state_indices",
    "time_cuts",
    "unusable_argument",
]
