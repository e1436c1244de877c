"""The front end `modules`: no graph; forward hooks cut the outputs of submodules while training.

It takes any model that runs: control flow over data, custom autograd functions, buffers written in forward. It
records one real step. A cut after a call is legal only if autograd's own graph shows that every value that carries
gradient from below the call to above it is an output of the call.
"""

import bisect
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import NodeMeta, Saving, flop_counter, record_of, sequence_number
from dni_fx.model import Inputs, in_train_mode, preserved, tensors_in
from dni_fx.runtime import HookedCapture, HookedModule, Output, adopt

__all__ = ["capture_by_modules"]


@dataclass
class _Call:
    """One call of a submodule, as it returned."""

    name: str
    number: int
    cls: str
    scope: tuple[tuple[str, str], ...]  # calls around it, outermost first, and their classes
    leaves: list[Any]
    given: list[Any]  # the module's own output, of which `leaves` are copies
    keys: list[int | None]  # the storage of each of `given`
    made_by: list[tuple[Any, int]]  # the autograd edge of each leaf
    versions: list[int]
    until: int  # autograd's sequence number when it returned
    flops: int
    saves: dict[int, int]
    inside: bool  # the call lies in a checkpointed block
    alive: list[int] = field(default_factory=list)  # leaves that get a gradient from above
    bypassed: bool = False  # another value from below gets a gradient from above, too


def capture_by_modules(model: nn.Module, inputs: Inputs) -> HookedModule:
    """Record the calls of one training step.

    Raises:
        CaptureError: If it does not run, has no submodule, or gives nothing that carries gradient.
    """
    with preserved(model), torch.enable_grad():
        in_train_mode(model)
        fresh = inputs.map(lambda t: t.detach().clone())
        calls, output = _record(model, fresh)
        roots = [edge for edge in map(_edge, tensors_in(output)) if edge[0] is not None]
        if not roots or not calls:
            raise CaptureError("the model calls no submodule, or gives nothing that carries gradient")
        used = _follow(roots, calls)
        written = any(v._version != n for c in calls for v, n in zip(_tensors(c.leaves), c.versions, strict=True))
    return _module(model, calls, used, written=written)


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Recorder:
    """Records every call of a submodule, in the order in which the calls return."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.calls: list[_Call] = []
        self.counts: Counter[str] = Counter()
        self.around: list[tuple[str, str]] = []  # the calls that run now, outermost first, and their classes
        self.names = {module: name for name, module in model.named_modules() if name}
        self.counter = flop_counter()
        self.saving = Saving([*model.parameters(), *model.buffers(), *inputs.tensors()])

    def pre_forward(self, module: nn.Module, _args: Any) -> None:
        name = self.names[module]
        call = f"{name}@{self.counts[name]}" if self.counts[name] else name
        self.counts[name] += 1
        self.around.append((call, type(module).__name__))

    def post_forward(self, module: nn.Module, _args: Any, output: Any) -> Any:
        scope = tuple(self.around)
        call, cls = self.around.pop()
        if not torch.is_grad_enabled():
            return output
        given, spec = pytree.tree_flatten(output)
        # Copied, as a cut does it: if the module returns its input unchanged, users of that input bypass the output.
        leaves = [t.clone() if isinstance(t, Tensor) and t.requires_grad else t for t in given]
        self.saving.alias(_tensors(given), _tensors(leaves))
        innermost = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self.calls.append(
            _Call(
                name=self.names[module],
                number=int(call.split("@")[1]) if "@" in call else 0,
                cls=cls,
                scope=scope,
                leaves=leaves,
                given=given,
                keys=[self.saving.key(t) if isinstance(t, Tensor) else None for t in given],
                made_by=[_edge(t) for t in leaves],
                versions=[t._version for t in _tensors(leaves)],
                until=sequence_number(),
                flops=self.counter.get_total_flops(),
                saves=self.saving.take(),
                inside=not self.saving.is_innermost(innermost),
            )
        )
        return pytree.tree_unflatten(leaves, spec)


def _record(model: nn.Module, inputs: Inputs) -> tuple[list[_Call], Any]:
    """Run the model; return its calls and its result."""
    recorder = _Recorder(model, inputs)
    handles = [m.register_forward_pre_hook(recorder.pre_forward) for m in recorder.names]
    handles += [m.register_forward_hook(recorder.post_forward) for m in recorder.names]
    try:
        with recorder.counter, recorder.saving:
            output = model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        raise CaptureError(f"the model does not run while its calls are recorded: {first_line(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
    return recorder.calls, output


def _edge(leaf: Any) -> tuple[Any, int]:
    """The autograd node that made a tensor, and which of its outputs it is."""
    node = leaf.grad_fn if isinstance(leaf, Tensor) else None
    return (None, 0) if node is None else (node, leaf.output_nr)


def _follow(roots: list[tuple[Any, int]], calls: list[_Call]) -> list[set[int]]:
    """Walk autograd's graph, and fill in `alive` and `bypassed` of every call.

    Returns:
        For every call, ids of the parameters used since the call before; last, of those used after all calls.
    """
    last_use: dict[tuple[Any, int], int] = {}
    used: list[set[int]] = [set() for _ in range(len(calls) + 1)]
    ends = [call.until for call in calls]
    last_use.update(dict.fromkeys(roots, ends[-1] + 1))
    stack = list(dict.fromkeys(node for node, _ in roots))
    seen = set(stack)
    while stack:
        node = stack.pop()
        number = node._sequence_nr()
        for source, output in node.next_functions:
            if source is None:
                continue
            if hasattr(source, "variable"):  # a parameter
                used[bisect.bisect_left(ends, number)].add(id(source.variable))
                continue
            last_use[source, output] = max(last_use.get((source, output), -1), number)
            if source not in seen:
                seen.add(source)
                stack.append(source)
    _mark_alive(calls, last_use)
    return used


def _mark_alive(calls: list[_Call], last_use: dict[tuple[Any, int], int]) -> None:
    """Sweep over the calls with the set of values that are made below and get a gradient from above."""
    made = sorted(last_use, key=lambda edge: edge[0]._sequence_nr())
    alive: set[tuple[Any, int]] = set()
    place = 0
    for call in calls:
        while place < len(made) and made[place][0]._sequence_nr() < call.until:
            alive.add(made[place])
            place += 1
        alive = {edge for edge in alive if last_use[edge] >= call.until}
        call.alive = [i for i, edge in enumerate(call.made_by) if edge in alive]
        call.bypassed = bool(alive - {call.made_by[i] for i in call.alive})


def _module(model: nn.Module, calls: list[_Call], used: list[set[int]], *, written: bool) -> HookedModule:
    """The record as a graph: a chain of calls, each of which takes the outputs of the one before."""
    graph = fx.Graph()
    names = {id(p): name for name, p in model.named_parameters()}
    start = graph.placeholder("inputs")
    start.meta["dni"] = NodeMeta()
    last: tuple[fx.Node, ...] = (start,)
    outputs: dict[str, Output] = {}
    flops = 0
    owned: set[int] = set()
    for call, ids in zip(calls, used, strict=False):
        node = graph.call_module(call.name, last)
        parameters = tuple(names[i] for i in ids if i in names)
        node.meta["dni"] = _record_of(call, parameters, call.flops - flops, owned)
        flops = call.flops
        if len(call.leaves) == 1 and call.alive:
            last = (node,)
            _describe(node, call.given[0], call.keys[0])
            outputs[node.name] = Output(call.name, call.number, 0)
        else:
            last = tuple(_element(graph, node, call, i) for i in call.alive) or (node,)
            outputs |= {n.name: Output(call.name, call.number, i) for n, i in zip(last, call.alive, strict=False)}
        if call.bypassed or call.inside:
            what = (
                "it lies in a checkpointed block" if call.inside else "another value that carries gradient bypasses it"
            )
            hint = ": let the block's own forward call checkpoint" if call.inside else ""
            record_of(last[-1]).obstacle = f"{what}, which the front end modules cannot cut{hint}"
    graph.output(last).meta["dni"] = NodeMeta(parameters=tuple(names[i] for i in used[-1] if i in names))
    return adopt(model, graph, HookedCapture(model, outputs=outputs, written=written), HookedModule)


def _record_of(call: _Call, parameters: tuple[str, ...], flops: int, owned: set[int]) -> NodeMeta:
    sizes = {key: t.untyped_storage().nbytes() for key, t in zip(call.keys, call.given, strict=True) if key is not None}
    owns = {key: size for key, size in sizes.items() if key not in owned}
    owned.update(owns)
    elements = sum(t.numel() for t in _tensors(call.given))  # element-wise: one operation each
    return NodeMeta(
        flops=flops or elements,
        parameters=parameters,
        carries_gradient=bool(call.alive),
        backward_flops=2 * flops or elements,
        owns=owns,
        saves=call.saves,
        scope=tuple(name for name, _ in call.scope),
        classes=tuple(cls for _, cls in call.scope),
    )


def _element(graph: fx.Graph, node: fx.Node, call: _Call, leaf: int) -> fx.Node:
    """One tensor of a call that gives several values."""
    element = graph.call_function(operator.getitem, (node, leaf))
    element.meta["dni"] = NodeMeta(carries_gradient=True, scope=record_of(node).scope, classes=record_of(node).classes)
    _describe(element, call.given[leaf], call.keys[leaf])
    return element


def _describe(node: fx.Node, tensor: Tensor, key: int | None) -> None:
    record = record_of(node)
    record.shape, record.dtype, record.device = tuple(tensor.shape), tensor.dtype, tensor.device
    record.storages = frozenset() if key is None else frozenset({key})
    record.axis = 1 if tensor.dim() in (4, 5) else -1
    node.meta["val"] = tensor.detach().to("meta")
