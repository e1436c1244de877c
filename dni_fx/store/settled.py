"""The plan of a saved folder, checked: ranges, known names, and that its entries agree with each other."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import fx

from dni_fx.arguments import FRONTENDS
from dni_fx.cuts import fingerprint
from dni_fx.errors import DniFxError
from dni_fx.plans import CrossingTensor, Plan, StateTensor

__all__ = ["check_fingerprint", "checked_plan"]


def checked_plan(folder: Path) -> Plan:
    """Read the plan of a saved folder, and check every entry.

    Raises:
        DniFxError: If the plan cannot be read, or an entry is wrong.
    """
    path = folder / "plan.json"
    try:
        plan = Plan.load(path)
    except DniFxError as error:
        place = "" if str(path) in str(error) else f"{path} is damaged: "
        raise DniFxError(f"{place}{error}") from None
    wrong = next(_wrong_entries(plan), None)
    if wrong is not None:
        raise DniFxError(f"{path} is damaged: {wrong}")
    return plan


def check_fingerprint(path: Path, plan: Plan, graph: fx.Graph) -> None:
    """Compare the fingerprint in a plan with that of the loaded graph, as it was before the rewrite.

    A cut in time leaves other `getitem` nodes in the graph, which then has no fingerprint to compare.

    Raises:
        DniFxError: If the graph is another.
    """
    if plan.states:
        return
    by_name = {node.name: node for node in graph.nodes}
    names = [name for segment in plan.segments for name in segment.nodes]
    same_nodes = sorted(names) == sorted(by_name)
    if not same_nodes or fingerprint(_in_order(by_name[name] for name in names)) != plan.fingerprint:
        what = "fingerprint" if same_nodes else "list of nodes"
        raise DniFxError(f"{path} is damaged, or of another folder: its {what} is not that of the graph in model.py")


def _in_order(nodes: Iterable[fx.Node]) -> fx.Graph:
    """A copy of the nodes in this order: generated code has the arguments first."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph


def _wrong_entries(plan: Plan) -> Iterator[str]:
    """Each wrong entry of a plan: its name, its value, and what belongs there. A later check relies on earlier ones."""
    if plan.frontend not in FRONTENDS:
        yield f"frontend={plan.frontend!r}; there are {', '.join(FRONTENDS)}"
    if len(plan.segments) != len(plan.cuts) + 1:
        yield f"{len(plan.segments)} segments do not fit {len(plan.cuts)} cuts"
    for k, segment in enumerate(plan.segments):
        for name in ("parameters", "flops", "activation_bytes", "peak_bytes"):
            if getattr(segment, name) < 0:
                yield f"segments[{k}].{name}={getattr(segment, name)}; 0 or more"
        for i, piece in enumerate(segment.recomputed):
            if not set(piece) <= set(segment.nodes):
                yield f"segments[{k}].recomputed[{i}]={list(piece)}, which are no nodes of segments[{k}]"
    below: set[str] = set()
    for k, cut in enumerate(plan.cuts):
        below.update(plan.segments[k].nodes)
        if cut.after not in plan.segments[k].nodes:
            yield f"cuts[{k}].after={cut.after!r}, which is no node of segments[{k}]"
        if not cut.tensors:
            yield f"cuts[{k}] has no tensors"
        for i, tensor in enumerate(cut.tensors):
            if tensor.node not in below:
                yield f"cuts[{k}].tensors[{i}].node={tensor.node!r}, which is no node below the cut"
            yield from _wrong_tensor(tensor, f"cuts[{k}].tensors[{i}]")
    for k, state in enumerate(plan.states):
        if not state.tensors or any(not 0 <= number < len(plan.segments) for number in (*state.enters, state.leaves)):
            yield f"states[{k}] has no tensors, or names a segment that the plan does not have"
        for i, one in enumerate(state.tensors):
            yield from _wrong_tensor(one, f"states[{k}].tensors[{i}]")
    for name, segments in plan.tied.items():
        if any(not 0 <= number < len(plan.segments) for number in segments):
            yield f"tied[{name!r}]={list(segments)} names a segment that the plan does not have"
    if plan.rewrite is not None:
        try:
            _ = plan.rewrite.settings
        except DniFxError as error:
            yield f"rewrite: {error}"


def _wrong_tensor(tensor: CrossingTensor | StateTensor, where: str) -> Iterator[str]:
    """The wrong entries of a crossing tensor, or of a tensor of a state."""
    shape, dtype = tensor.shape, getattr(torch, tensor.dtype, None)
    if not shape or min(shape) < 1:
        yield f"{where}.shape={list(shape)}; sizes of 1 or more"
    elif not -len(shape) <= tensor.axis < len(shape):
        yield f"{where}.axis={tensor.axis}, but the tensor has {len(shape)} axes"
    elif isinstance(tensor, CrossingTensor) and not (tensor.batch is None or 0 <= tensor.batch < len(shape)):
        yield f"{where}.batch={tensor.batch}, but the tensor has {len(shape)} axes"
    elif isinstance(tensor, CrossingTensor) and tensor.rows < 0:
        yield f"{where}.rows={tensor.rows}; 0 or more"
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
        yield f"{where}.dtype={tensor.dtype!r}; a floating dtype of torch"
    elif isinstance(tensor, CrossingTensor) and tensor.bytes != math.prod(shape) * dtype.itemsize:
        yield f"{where}.bytes={tensor.bytes}, but the tensor has {math.prod(shape) * dtype.itemsize}"
    if isinstance(tensor, StateTensor) and tensor.output < 0:
        yield f"{where}.output={tensor.output}; 0 or more"
