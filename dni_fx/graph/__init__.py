"""What is known of each node of a captured graph.

In: an fx graph. Out: one `NodeMeta` a node, counts of FLOPs and saved bytes, the networkx view.
"""

from dni_fx.graph.counters import Saving, flop_counter, sequence_number, storage_key
from dni_fx.graph.features import feature_axis
from dni_fx.graph.flow import dataflow
from dni_fx.graph.marks import cut_after, mark_of
from dni_fx.graph.record import NodeMeta, given_by, module_calls, record_of

__all__ = [
    "NodeMeta",
    "Saving",
    "cut_after",
    "dataflow",
    "feature_axis",
    "flop_counter",
    "given_by",
    "mark_of",
    "module_calls",
    "record_of",
    "sequence_number",
    "storage_key",
]
