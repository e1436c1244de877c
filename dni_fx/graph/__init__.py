"""Facts about each node of a captured graph.

In: an fx graph. Out: a `NodeMeta` for each node, counts of FLOPs and saved bytes, the networkx graph.
"""

from dni_fx.graph.counters import Saving, flop_counter, sequence_number, storage_key
from dni_fx.graph.features import feature_axis
from dni_fx.graph.flow import dataflow
from dni_fx.graph.marks import cut_after, mark_of
from dni_fx.graph.record import NodeMeta, module_calls, record_of, returned_nodes

__all__ = [
    "NodeMeta",
    "Saving",
    "cut_after",
    "dataflow",
    "feature_axis",
    "flop_counter",
    "mark_of",
    "module_calls",
    "record_of",
    "returned_nodes",
    "sequence_number",
    "storage_key",
]
