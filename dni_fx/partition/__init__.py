"""Split a graph of plain numbers into segments: no torch.

In: a networkx DAG whose nodes hold costs. Out: places to cut.
"""

from dni_fx.partition import chain
from dni_fx.partition.chain import LoadsFrom, Numbers, Split
from dni_fx.partition.flow_node import FlowNode, add_flow_node, flow_node
from dni_fx.partition.places import (
    MOST_CANDIDATES,
    Candidate,
    Position,
    find_candidates,
    find_positions,
    position_after,
)
from dni_fx.partition.split import Partition, loads, partition

__all__ = [
    "MOST_CANDIDATES",
    "Candidate",
    "FlowNode",
    "LoadsFrom",
    "Numbers",
    "Partition",
    "Position",
    "Split",
    "add_flow_node",
    "chain",
    "find_candidates",
    "find_positions",
    "flow_node",
    "loads",
    "partition",
    "position_after",
]
