"""Facts about each node of a captured graph.

In: an fx graph. Out: a `NodeRecord` for each node, counts of FLOPs and saved bytes, the networkx graph.
"""

from dni_fx.graph.counters import Saving, flop_counter, sequence_number, storage_key
from dni_fx.graph.features import default_axis, feature_axis, fixed_axes
from dni_fx.graph.flow import dataflow
from dni_fx.graph.kept_order import KeptOrder, kept_order
from dni_fx.graph.lint import lint
from dni_fx.graph.marks import cut_after, mark_of
from dni_fx.graph.record import (
    NodeRecord,
    crossing_tensor,
    has_record,
    module_calls,
    operation_name,
    own_loss,
    record_of,
    returned_nodes,
    set_record,
)

__all__ = [
    "KeptOrder",
    "NodeRecord",
    "Saving",
    "crossing_tensor",
    "cut_after",
    "dataflow",
    "default_axis",
    "feature_axis",
    "fixed_axes",
    "flop_counter",
    "has_record",
    "kept_order",
    "lint",
    "mark_of",
    "module_calls",
    "operation_name",
    "own_loss",
    "record_of",
    "returned_nodes",
    "sequence_number",
    "set_record",
    "storage_key",
]
