"""Split a graph of plain numbers into segments: no torch.

In: a networkx DAG whose nodes hold costs. Out: places to cut.
"""

from dni_fx.partition import chain
from dni_fx.partition.chain import LoadsFrom, Split
from dni_fx.partition.exits import Route, find_route, is_in_branch, next_places, places_above, with_writes
from dni_fx.partition.flow_node import FlowNode, add_flow_node, flow_node, largest_parameter, set_largest_parameter
from dni_fx.partition.instance import checked_objective
from dni_fx.partition.positions import (
    MOST_CANDIDATES,
    Candidate,
    Position,
    count_layers,
    find_candidates,
    find_positions,
    position_after,
)
from dni_fx.partition.projections import projection_sums
from dni_fx.partition.split import Partition, has_one_order, loads, partition
from dni_fx.partition.units import units_above
from dni_fx.partition.workload import Numbers, Objective

__all__ = [
    "MOST_CANDIDATES",
    "Candidate",
    "FlowNode",
    "LoadsFrom",
    "Numbers",
    "Objective",
    "Partition",
    "Position",
    "Route",
    "Split",
    "add_flow_node",
    "chain",
    "checked_objective",
    "count_layers",
    "find_candidates",
    "find_positions",
    "find_route",
    "flow_node",
    "has_one_order",
    "is_in_branch",
    "largest_parameter",
    "loads",
    "next_places",
    "partition",
    "places_above",
    "position_after",
    "projection_sums",
    "set_largest_parameter",
    "units_above",
    "with_writes",
]
