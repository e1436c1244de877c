"""The record of a net by the front end `modules` in its `model.py`: written as data, and read again."""

import operator
from collections.abc import Collection, Iterable, Iterator

from torch import fx

from dni_fx.graph import NodeRecord, set_record
from dni_fx.passes.pipeline import passes_of
from dni_fx.report import calls_of, outputs_of, record_lines
from dni_fx.runtime import DecoupledModule

__all__ = ["add_cuts", "call_entries", "graph_of_calls"]

Call = tuple[str, tuple[int, ...]]  # the name of a submodule, and the indices of the outputs that are used


def call_entries(net: DecoupledModule) -> Iterator[str]:
    """The lines of the attribute `dni_calls`: an entry for each call, and a comment for each segment and cut."""
    entries = iter([(str(node.target), tuple(n.args[1] for n in outputs_of(node))) for node in calls_of(net.graph)])
    place = ""
    for line in record_lines(net):
        if line.place != place:
            yield f"# {line.place}"
            place = line.place
        yield f"#   {line.text}" if line.added else f"{next(entries)!r},"


def graph_of_calls(calls: Iterable[Call]) -> fx.Graph:
    """The record as a graph, as the front end makes it: each call takes the outputs of the call before."""
    graph = fx.Graph()
    last: tuple[fx.Node, ...] = (graph.placeholder("inputs"),)
    for name, outputs in calls:
        node = graph.call_module(name, last)
        last = tuple(graph.call_function(operator.getitem, (node, index)) for index in outputs) or (node,)
    graph.output(last)
    return graph


def add_cuts(net: DecoupledModule, with_gradient: Collection[str]) -> None:
    """Write the cuts of the net's plan into its record.

    Args:
        with_gradient: The names of the nodes whose values carry gradient.
    """
    for node in net.graph.nodes:
        known = node.name in with_gradient
        set_record(node, NodeRecord(carries_gradient=known))
        if known:
            node.meta["val"] = None  # the shape is not known
    for one in passes_of(net.dni.plan, runs_graph=False):
        one(net)
    net.recompile()
