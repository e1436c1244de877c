"""Exits: which later nodes of the model run on the tensors at a cut, whose weights they use, and what they cost."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import networkx as nx
from torch import fx

from dni_fx.cost.exit_nodes import (
    has_residual_sums,
    input_like_output,
    is_batch_norm,
    large_layer,
    last_linear,
    values_used,
)
from dni_fx.cost.exit_shares import EXIT_SHARE
from dni_fx.errors import DniFxError
from dni_fx.graph import crossing_tensor, record_of, returned_nodes
from dni_fx.partition import (
    Position,
    Route,
    find_positions,
    find_route,
    flow_node,
    is_in_branch,
    next_places,
    places_above,
    projection_sums,
    units_above,
    with_writes,
)
from dni_fx.plans import CrossingTensor, ExitPlan, UnitPlan
from dni_fx.runtime import DecoupledModule
from dni_fx.synthesizers import ExitOptions, head_flops

__all__ = ["WORST_RANK", "ExitCost", "ExitPlanner"]

WORST_RANK = 2  # of a place for an automatic cut


@dataclass(frozen=True)
class ExitCost:
    """The costs of one exit."""

    time: float
    own: int  # bytes of its own parameters
    trained: int  # bytes of the gradients of the parameters that it trains
    saved: int  # bytes that autograd keeps while it runs
    saved_by_units: int = 0  # bytes that autograd keeps for units that run once, while the segment below runs backward
    has_heads: bool = False  # in the place of later layers


class ExitPlanner:
    """Plans the exit of any cut of an annotated graph.

    Args:
        has_loss: There is a loss of the outputs; else the model returns its own.

    Raises:
        DniFxError: If there is neither.
    """

    def __init__(self, net: DecoupledModule, flow: "nx.DiGraph[str]", options: ExitOptions, *, has_loss: bool) -> None:
        self.flow, self.options = with_writes(flow), options
        self.by_name = {node.name: node for node in net.graph.nodes}
        self.loss = "" if has_loss else net.dni_own_loss()
        if not has_loss and not self.loss:
            raise DniFxError(
                'an exit ends in the loss: give loss=, such as loss="cross_entropy", and the target of each call as '
                "dni_context; or a model that returns its loss"
            )
        self.ends = [self.loss] if self.loss else [node.name for node in returned_nodes(net.graph)]
        self.target = input_like_output(net.graph) if has_loss else ""
        self._last_linear = last_linear(net) if has_loss else ""
        self._large_layer = large_layer(net, self._last_linear) if options.weights == "auto" else ()
        if options.tokens < 1 and not self._last_linear:
            raise DniFxError("exit: tokens is for a loss behind one last linear layer of the model; leave tokens out")
        returned = [record_of(node) for node in returned_nodes(net.graph)]
        self._features_last = all(record.axis in (-1, len(record.shape or ()) - 1) for record in returned)
        self._returns_maps = all(record.axis == 1 and len(record.shape or ()) > 3 for record in returned)
        self._order = {name: place for place, name in enumerate(flow)}
        self._sums = list(itertools.accumulate(map(self._is_sum, flow), initial=0))
        self._most_forward = EXIT_SHARE * sum(flow_node(flow, name).forward for name in flow)
        self._routes: dict[Position, Route | None] = {}
        # With the nodes that write to the results.
        written = [] if self.loss else list(self.flow.predecessors("output"))
        # A model without a graph has no node for its own loss.
        self._computed = [end for end in dict.fromkeys([*self.ends, *written]) if end in self.flow]
        self._used = set(self._computed).union(*(nx.ancestors(self.flow, end) for end in self._computed))
        self._next_place = next_places(self.flow, self._computed)
        self._projections = projection_sums(self.flow)
        self._with_heads: dict[Position, bool] = {}
        self._costs: dict[Position, ExitCost] = {}
        legal = [p for p in find_positions(flow) if len(p.crossing) == 1 and not p.obstacle]
        self._crossing_alone = {position.crossing[0]: position for position in reversed(legal)}

    def route(self, position: Position) -> Route | None:
        """The route from a cut; None: the loss does not depend on what crosses the cut."""
        if position not in self._routes:
            units = None if self.options.units == "all" else int(self.options.units)
            found = self._find(position, units)
            if units == 0 and found is not None and any(flow_node(self.flow, name).takes_part for name in found.nodes):
                # All but one position would get no gradient: a unit has to mix the positions before.
                found = self._find(position, 1)
            self._routes[position] = found
        return self._routes[position]

    def _forward(self, route: Route | None, nodes: Sequence[str] | None = None) -> float:
        """The time of a forward pass of some nodes of a route, or of all."""
        run = () if route is None else route.nodes if nodes is None else nodes
        return sum(flow_node(self.flow, name).forward for name in run)

    def _find(self, position: Position, units: int | None) -> Route | None:
        """The route that runs whole what changes the shape, or else, if that costs too much, the cheapest one."""

        def find(both: Set[str]) -> Route | None:
            return find_route(self.flow, position, self._computed, units, self._next_place, both)

        route = find(self._projections)
        if route is None or units is None or not self._projections:
            return route
        in_tail = [name for name in route.nodes if name not in route.kept]
        return route if self._forward(route, in_tail) <= self._most_forward else find(frozenset())

    def rank(self, position: Position) -> int:
        """How good a place for an automatic cut this is: 0 is good.

        1: the exit runs projection shortcuts in the place of whole blocks, which cost too much. WORST_RANK: the exit
        runs all that is above, or there is none, or the cut is in a branch.
        """
        route = self.route(position)
        if route is None or is_in_branch(self.flow, places_above(self._next_place, position.crossing), position):
            return WORST_RANK
        if self._needs_heads(position):
            return 0
        return (
            WORST_RANK if not route.bypassed else int(any(self._is_shortcut(name, route) for name in self._projections))
        )

    def _is_shortcut(self, name: str, route: Route) -> bool:
        """Whether a term replaces a sum on a route."""
        instead = route.bypassed.get(name)
        return instead is not None and instead in self.flow.predecessors(name)

    def plan(self, position: Position) -> ExitPlan:
        """The exit of a cut.

        Raises:
            DniFxError: If the cut has none.
        """
        route = self.route(position)
        if route is None:
            raise DniFxError(
                f"no exit from the cut after {position.after}: the loss does not depend on what crosses it"
            )
        if self._needs_heads(position):
            return ExitPlan(
                units=0,
                weights="fresh",
                nodes=(),
                bypassed={},
                inputs=(),
                borrowed=(),
                heads=self._heads(),
                loss=self.loss,
                target=self.target,
                features_last=self._features_last,
            )
        in_units, nodes = self._split(position, route)
        weights = self._weights({**in_units, **nodes}, route.bypassed)
        of_units = self._only_in_units(nodes, route)
        inputs, borrowed = values_used(nodes, {*position.crossing, *in_units, *route.bypassed})
        return ExitPlan(
            units="all" if route.units is None else route.units,
            weights=weights,
            nodes=tuple(nodes),
            bypassed=route.bypassed,
            inputs=inputs,
            borrowed=borrowed,
            loss=self.loss,
            target=self.target,
            writes=any(record_of(node).mutates for node in nodes.values()),
            flops=round(sum(self._part(name) * record_of(node).flops for name, node in nodes.items())),
            unit=self._unit(position, in_units),
            constant=(
                *(of_units if self.options.frozen_units else ()),
                *(self._large_layer if weights == "shared" else ()),
            ),
            not_copied=of_units if self.options.weights == "auto" else (),
            frozen_units=self.options.frozen_units and bool(route.kept),
            features_last=self._features_last,
            tokens=self.options.tokens,
        )

    def _split(self, position: Position, route: Route) -> tuple[dict[str, fx.Node], dict[str, fx.Node]]:
        """The nodes of the units that run once, by name, and the nodes that run for the exit alone."""
        nodes = {name: self.by_name[name] for name in route.nodes}
        nodes = {name: node for name, node in nodes.items() if node.op not in ("get_attr", "placeholder")}
        own = self.options.weights in ("copy", "fresh", "ema")
        above = () if own else units_above(self.flow, position, route, self._crossing_alone)
        in_units = {name: nodes[name] for name in above if name in nodes}
        return in_units, {name: node for name, node in nodes.items() if name not in in_units}

    def _unit(self, position: Position, in_units: Mapping[str, fx.Node]) -> UnitPlan | None:
        if not in_units:
            return None
        *_, last = in_units.values()
        inputs, borrowed = values_used(in_units, set(position.crossing))
        return UnitPlan(tuple(in_units), crossing_tensor(last), inputs, borrowed)

    def _only_in_units(self, nodes: Mapping[str, fx.Node], route: Route) -> tuple[str, ...]:
        """The submodules and tensors that only units use, of the nodes that run for the exit alone."""
        units = {name: node for name, node in nodes.items() if name in route.kept}
        _, others = values_used({name: node for name, node in nodes.items() if name not in units}, set())
        return tuple(path for path in values_used(units, set())[1] if path not in others)

    def cost(self, position: Position) -> ExitCost:
        """The costs of the exit of a cut; of no exit, none."""
        if position not in self._costs:
            self._costs[position] = self._find_cost(position)
        return self._costs[position]

    def _find_cost(self, position: Position) -> ExitCost:
        route = self.route(position)
        if self._needs_heads(position):
            flops = self._head_flops(position)
            return ExitCost(time=3 * flops, own=0, trained=0, saved=0, has_heads=True)
        if route is None:
            return ExitCost(time=0.0, own=0, trained=0, saved=0)
        in_units, nodes = self._split(position, route)
        weights = self._weights({**in_units, **nodes}, route.bypassed)
        constant = {*route.kept} if self.options.frozen_units else set()
        if self._large_layer and weights == "shared":
            constant.add(self._last_linear)
        trains = weights not in ("readonly", "ema")
        both = {name: flow_node(self.flow, name) for name in (*in_units, *nodes)}
        trained = {name for name in both if trains and name not in constant}
        not_copied = {*route.kept} if self.options.weights == "auto" else set()
        copied = [] if weights in ("shared", "readonly") else [name for name in nodes if name not in not_copied]
        return ExitCost(
            # Half of the time of a backward pass is for the weights.
            time=sum(self._part(name) * both[name].forward for name in nodes)
            + sum(self._part(n) * cost.backward * (1.0 if n in trained else 0.5) for n, cost in both.items()),
            own=sum(both[name].gradient for name in copied),
            trained=sum(both[name].gradient for name in trained),
            saved=self._saved(nodes),
            saved_by_units=self._saved(in_units),
        )

    def _part(self, name: str) -> float:
        """The part of a node's operations that an exit needs: of the last linear layer, for some of the positions."""
        return self.options.tokens if name == self._last_linear else 1.0

    def suits(self, cuts: Sequence[Position]) -> bool:
        """Whether `auto` may take these exits at these cuts, whatever they cost.

        Two units must run once: one may run a second time, more must cost a backward pass alone. Residual branches that
        mix no positions, as in a residual MLP, are no units for `auto`: the tail alone trains as well, and better than
        frozen branches.
        """
        if self.options.units == 2 and not self._units_run_once(cuts):
            return False
        kept = [name for cut in cuts if (route := self.route(cut)) is not None for name in route.kept]
        nodes = [flow_node(self.flow, name) for name in kept]
        return any(node.mixes for node in nodes) or not any(node.is_sum for node in nodes)

    def _units_run_once(self, cuts: Sequence[Position]) -> bool:
        """Whether the units of each exit are all in the segment above, and run once for both."""
        for position, above in itertools.zip_longest(cuts, cuts[1:]):
            route = self.route(position)
            in_units = {} if route is None else self._split(position, route)[0]
            last = max((self._order[name] for name in in_units), default=-1)
            if route is None or not set(route.kept) <= set(in_units) or (above is not None and last > above.index):
                return False
        return True

    def _saved(self, names: Iterable[str]) -> int:
        saved: dict[int, int] = {}
        for name in names:
            saved |= flow_node(self.flow, name).saves
        return sum(saved.values())

    def _needs_heads(self, position: Position) -> bool:
        """Whether small heads take the place of later layers; found once for each position."""
        if position not in self._with_heads:
            self._with_heads[position] = self._heads_are_better(position)
        return self._with_heads[position]

    def _heads_are_better(self, position: Position) -> bool:
        """Whether heads are possible and better than later layers.

        So it is where the later layers, but for a cheap unit that was asked for, cost more than the share; and for maps
        without units, since a position needs its neighbours (1x1 heads are useless for segmentation).
        """
        if self.loss or self.options.units == "all" or self.options.tokens < 1 or not self._last_holds_all(position):
            return False
        if self.options.units == 0 and self._returns_maps:
            return self._head_flops(position) < math.inf
        cost = self._forward(self._find(position, 0))
        next_unit = self._find(position, 1) if self.options.units else None
        if next_unit is not None:
            of_unit = self._forward(next_unit, next_unit.kept)
            if of_unit <= 2 * self._most_forward:
                cost = min(cost, self._forward(next_unit) - of_unit)
        # A head learns less than the later layers: it must be cheaper than, say, a layer of logits.
        return cost > self._most_forward and self._head_flops(position) < 0.9 * cost

    def _last_holds_all(self, position: Position) -> bool:
        """Whether the last crossing tensor, which heads take, is computed from the others that the results need."""
        *others, last = position.crossing
        return last in self._used and set(others) & self._used <= nx.ancestors(self.flow, last)

    def _heads(self) -> tuple[CrossingTensor, ...]:
        """The outputs, for each of which there is a small head."""
        return tuple(crossing_tensor(self.by_name[end]) for end in self.ends)

    def _head_flops(self, position: Position) -> float:
        crossing = [crossing_tensor(self.by_name[name]) for name in position.crossing]
        return head_flops(crossing, self._heads())

    def _is_sum(self, name: str) -> bool:
        """Whether a node computes a residual sum, by itself or inside."""
        return flow_node(self.flow, name).is_sum or has_residual_sums(self.by_name[name])

    def _weights(self, nodes: Mapping[str, fx.Node], bypassed: Mapping[str, str]) -> str:
        """Whose weights an exit uses.

        "auto" is "copy" if the exit jumps over layers that no sum joins, since the features before and after them are
        not alike; and if there is batch norm before the tail, which is behind the last jump and the last sum.
        """
        if self.options.weights != "auto":
            return self.options.weights
        if not bypassed:  # the exit is the rest of the model
            return "shared"
        jumps = [(self._order[instead], self._order[name]) for name, instead in bypassed.items()]
        sums = [self._sums[end + 1] > self._sums[begin] for begin, end in jumps]
        joined = [self._order[name] for name in (*bypassed, *nodes) if self._is_sum(name)]
        last = max([end for _, end in jumps] + joined)
        before_tail = [node for name, node in nodes.items() if self._order[name] < last]
        return "shared" if all(sums) and not any(map(is_batch_norm, before_tail)) else "copy"
