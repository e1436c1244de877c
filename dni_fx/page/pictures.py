"""The graph as dot text, as a picture by graphviz, as JSON, and as node data for Model Explorer."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dni_fx.errors import DniFxError
from dni_fx.page.nodes import GraphNode
from dni_fx.page.page import graph_data
from dni_fx.plans import Plan
from dni_fx.store import beside, errors_of_writing, real_path
from dni_fx.units import bytes_text, quantity

__all__ = ["check_picture", "dot_text", "write_node_data", "write_picture"]

_BY_GRAPHVIZ = (".svg", ".png")

_COLORS = ("#cfe3f7", "#fbe3c4", "#d6efd3", "#efd9f2", "#fbd5d5", "#d3eeee", "#eee8c5", "#dedcf5")  # of segments


def check_picture(path: Path) -> None:
    """Raise a DniFxError if `write_picture` cannot write such a file: call it before the long run."""
    if path.suffix not in (*_BY_GRAPHVIZ, ".dot", ".json"):
        raise DniFxError(f"cannot write a graph to {path}: give a .svg, .png, .dot or .json")
    if path.suffix in _BY_GRAPHVIZ and shutil.which("dot") is None:
        raise DniFxError(f"a {path.suffix} needs the program dot of graphviz, which is not installed; or give a .dot")


def write_picture(path: Path, plan: Plan, nodes: tuple[GraphNode, ...]) -> None:
    """Write the graph in the form that the suffix names, whole or not at all.

    Raises:
        DniFxError: If the file cannot be written, or graphviz fails.
    """
    check_picture(path)
    if path.suffix == ".json":
        content = (json.dumps(graph_data(plan, nodes), indent=1) + "\n").encode()
    else:
        content = dot_text(plan, nodes).encode()
    if path.suffix in _BY_GRAPHVIZ:
        content = _drawn(content, path.suffix[1:])
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path = real_path(path)
    with errors_of_writing(path), beside(path) as new:
        new.write_bytes(content)
        new.replace(path)


def _drawn(dot: bytes, form: str) -> bytes:
    done = subprocess.run(["dot", f"-T{form}"], input=dot, capture_output=True)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[0]
        raise DniFxError(f"graphviz cannot draw the graph ({reason}): give a .dot, or --report")
    return done.stdout


def write_node_data(path: Path, nodes: Iterable[GraphNode]) -> None:
    """Write the segment of each node as node data of Model Explorer, which calls the graph of a program "graph"."""
    results = {
        node.name: {"value": node.segment, "bgColor": _COLORS[node.segment % len(_COLORS)], "textColor": "#1c2430"}
        for node in nodes
    }
    _write(path, json.dumps({"graph": {"name": "segment", "results": results}}, indent=1).encode() + b"\n")


def dot_text(plan: Plan, nodes: Sequence[GraphNode]) -> str:
    """The graph in the language of graphviz: a box for each segment and module, red edges across the cuts."""
    lines = [f"digraph {_quoted(plan.model)} {{", 'rankdir=TB; fontname="sans-serif"; compound=true;']
    lines.append('node [shape=box style="rounded,filled" fillcolor=white fontname="sans-serif" fontsize=10];')
    lines.append('edge [color="#66707c" fontname="sans-serif" fontsize=9];')
    for k in range(len(plan.segments)):
        lines += _segment(plan, k, [node for node in nodes if node.segment == k])
    crossing = {tensor.node: tensor for cut in plan.cuts for tensor in cut.tensors}
    segment_of = {node.name: node.segment for node in nodes}
    for node in nodes:
        for source in node.sources:
            style = ""
            if segment_of[source] != node.segment:
                tensor = crossing.get(source)
                label = "" if tensor is None else f"{_shape(tensor.shape)}\n{bytes_text(tensor.bytes)}"
                style = f' [color="#c6351f" penwidth=2 label={_quoted(label)}]' if tensor else " [style=dashed]"
            lines.append(f"{_quoted(source)} -> {_quoted(node.name)}{style};")
    return "\n".join([*lines, "}"]) + "\n"


def _segment(plan: Plan, index: int, nodes: Sequence[GraphNode]) -> list[str]:
    peak = bytes_text(plan.segments[index].peak_bytes)
    title = f"segment {index}: {quantity(plan.segments[index].parameters)} parameters, peak {peak}"
    lines = [f'subgraph "cluster_{index}" {{', f"label={_quoted(title)}; style=filled;"]
    lines.append(f'fillcolor="{_COLORS[index % len(_COLORS)]}"; color="#98a2b0";')
    return [*lines, *_inside(nodes, 0, f"cluster_{index}"), "}"]


def _inside(nodes: Sequence[GraphNode], depth: int, box: str) -> Iterator[str]:
    """The nodes of a box, with a box for each module that holds several of them."""
    groups: dict[tuple[str, str], list[GraphNode]] = {}
    for node in nodes:
        if len(node.scope) > depth:
            groups.setdefault(node.scope[depth], []).append(node)
        else:
            yield _node(node)
    for (call, cls), members in groups.items():
        if len(members) == 1:
            yield _node(members[0])
            continue
        inner = f"{box}/{call}"
        yield f'subgraph {_quoted(inner)} {{ label={_quoted(f"{call} ({cls})")}; fillcolor="#ffffff80";'
        yield from _inside(members, depth + 1, inner)
        yield "}"


def _node(node: GraphNode) -> str:
    shape = "" if node.shape is None else f"\n{_shape(node.shape)}"
    tooltip = " ".join(filter(None, node.line)) or node.name
    return (
        f"{_quoted(node.name)} [label={_quoted(f'{node.name}: {node.operation}{shape}')} tooltip={_quoted(tooltip)}];"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
