"""Exits of a model without a graph: the model itself runs again from a cut, and leaves later blocks out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import networkx as nx
from torch import fx, nn

from dni_fx.cost.exits import ExitPlanner
from dni_fx.errors import DniFxError
from dni_fx.graph import record_of
from dni_fx.partition import Position, Route
from dni_fx.plans import ExitPlan
from dni_fx.runtime import DecoupledModule, Output
from dni_fx.synthesizers import ExitOptions

__all__ = ["HookedExitPlanner"]


class HookedExitPlanner(ExitPlanner):
    """Plans exits on the record of the calls of a model.

    The units are the children of a Sequential or ModuleList. Of the list that holds the cut, the next units run; of a
    later list, such as a decoder's, the first child. The others are left out where the shape stays the same.
    """

    def __init__(self, net: DecoupledModule, flow: "nx.DiGraph[str]", options: ExitOptions, *, has_loss: bool) -> None:
        if options.weights not in ("auto", "shared", "readonly"):
            raise DniFxError(
                f"exit: weights={options.weights!r} needs a graph, by the front end fx or export: with the front end "
                "modules an exit uses the model's own weights, shared or readonly"
            )
        if options.frozen_units:
            raise DniFxError("exit: frozen_units needs a graph, by the front end fx or export")
        if options.tokens < 1:
            raise DniFxError("exit: tokens needs a graph, by the front end fx or export")
        self.net = net
        captured: Any = net.dni_captured
        self.outputs: Mapping[str, Output] = captured.outputs
        super().__init__(net, flow, options, has_loss=has_loss)

    def plan(self, position: Position) -> ExitPlan:
        planned = super().plan(position)
        # A container is called, too; what it borrows are the submodules inside.
        inner = [path for path in planned.borrowed if not any(p.startswith(f"{path}.") for p in planned.borrowed)]
        return replace(planned, borrowed=tuple(inner), inputs=())

    def _weights(self, nodes: Mapping[str, fx.Node], bypassed: Mapping[str, str]) -> str:
        return "shared" if self.options.weights == "auto" else self.options.weights

    def _needs_heads(self, position: Position) -> bool:
        return False

    def _find(self, position: Position, units: int | None) -> Route | None:
        """The route of an exit from a cut after a call; None: the cut is not after a call."""
        cut = self.outputs.get(position.after)
        if cut is None:
            return None
        bypassed: dict[str, str] = {}
        if units is not None:
            for blocks in self._lists():
                bypassed |= self._left_out(blocks, position, cut, units)
        order = list(self.flow)
        left_out = {_key(self.outputs[name]) for name in bypassed}
        nodes = [n for n in order[position.index + 1 : -1] if not left_out & {*record_of(self.by_name[n]).scope}]
        return Route(tuple(nodes), bypassed, units)

    def _left_out(self, blocks: list[str], position: Position, cut: Output, units: int) -> dict[str, str]:
        """The blocks of a list that an exit leaves out, each with the block before it."""
        order = {name: place for place, name in enumerate(self.flow)}
        has_cut = [_holds(self.outputs[name].module, cut.module) for name in blocks]
        later = [i for i, name in enumerate(blocks) if order[name] > position.index and not has_cut[i]]
        whole = units if any(has_cut) else max(units, 1)
        pairs = [(blocks[i], blocks[i - 1]) for i in later[whole:] if i > 0]
        return {name: before for name, before in pairs if self._form(name) == self._form(before)}

    def _lists(self) -> list[list[str]]:
        """For each outermost Sequential or ModuleList, the nodes of the calls of its children, in order."""
        lists: dict[str, dict[str, str]] = {}
        for name, output in self.outputs.items():
            parent = output.module.rpartition(".")[0]
            if isinstance(self.net.dni_original.get_submodule(parent), nn.Sequential | nn.ModuleList):
                lists.setdefault(parent, {}).setdefault(_key(output), name)
        inner = [p for p in lists if any(_holds(q, p) and p != q for q in lists)]
        return [[*calls.values()] for parent, calls in lists.items() if parent not in inner]

    def _form(self, name: str) -> object:
        record = record_of(self.by_name[name])
        return record.shape, record.dtype


def _holds(outer: str, inner: str) -> bool:
    """Whether a module is another one, or inside of it; the model itself has the name ""."""
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _key(output: Output) -> str:
    """The call of a module, as the scope of a node names it."""
    return f"{output.module}@{output.call}" if output.call else output.module
