"""The front end `modules`: no graph; forward hooks cut the outputs of submodules while training.

It takes any model that runs: control flow over data, custom autograd functions, buffers written in forward. It records
the calls of one real step. A cut after a call is legal only if the call's outputs are the only values that carry
gradient from below the call to above it; autograd's graph shows that.
"""

import bisect
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from dni_fx.capture.effects import oldest_node, on_differentiation
from dni_fx.capture.places import current_line
from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import NodeRecord, Saving, default_axis, flop_counter, record_of, sequence_number, set_record
from dni_fx.model import Inputs, in_train_mode, preserved, tensors_in
from dni_fx.runtime import HookedCapture, HookedModule, Output, free_reserved_name, make_module

__all__ = ["capture_by_modules"]

Edge = tuple[Node, int]  # an autograd node, and the index of one of its outputs


@dataclass
class _Call:
    """One call of a submodule, as it returned."""

    name: str
    number: int
    cls: str
    scope: tuple[tuple[str, str], ...]  # name and class of this call and the calls around it, outermost first
    outputs: list[Any]  # the leaves of the output, as the module returned them
    leaves: list[Any]  # copies of `outputs`, which the rest of the model uses
    keys: list[int | None]  # the storage of each output
    edges: list[Edge | None]  # the autograd edge of each leaf
    versions: list[int]  # `_version` of each leaf that is a tensor
    sequence_number: int  # autograd's, at the return
    flops: int  # of the step, up to the return
    saves: dict[int, int]
    in_checkpoint: bool  # the call lies in a checkpointed block
    line: tuple[str, str]  # the place and text of the line that called it
    carrying: list[int] = field(default_factory=list)  # indices of the leaves that get a gradient from above
    bypassed: bool = False  # a value from below that is no leaf of the call gets a gradient from above
    differentiated: str = ""  # the line of forward that later differentiates through values of the call


def capture_by_modules(model: nn.Module, inputs: Inputs) -> HookedModule:
    """Record the calls of one training step.

    Raises:
        CaptureError: If the model does not run, calls no submodule, or returns nothing that carries gradient.
    """
    with preserved(model), torch.enable_grad():
        in_train_mode(model)
        fresh = inputs.map(lambda t: t.detach().clone())
        recorder, output = _recorded(model, fresh)
        calls = recorder.calls
        roots = [edge for edge in map(_edge, tensors_in(output)) if edge is not None]
        if not roots or not calls:
            raise CaptureError("the model calls no submodule, or returns nothing that carries gradient")
        used = _follow(roots, calls)
        written = any(t._version != n for c in calls for t, n in zip(_tensors(c.leaves), c.versions, strict=True))
    facts = HookedCapture(model, written=written, returns_loss=_returns_loss(tensors_in(output)))
    named = [sorted({recorder.parameters[i] for i in ids if i in recorder.parameters}) for ids in used]
    return _module(model, calls, named, facts)


def _returns_loss(outputs: Sequence[Tensor]) -> bool:
    """Whether one scalar carries gradient among the outputs, and is computed from all others that do."""
    functions = {t.grad_fn: t for t in outputs if t.grad_fn is not None}
    scalars = [function for function, t in functions.items() if not t.dim()]
    if len(scalars) != 1:
        return False
    below: set[Any] = set()
    waiting: list[Any] = list(scalars)
    while waiting:
        function = waiting.pop()
        if function is not None and function not in below:
            below.add(function)
            waiting += [source for source, _ in function.next_functions]
    return functions.keys() <= below


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Recorder:
    """Records every call of a submodule, in the order in which the calls return."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.calls: list[_Call] = []
        self.counts: Counter[str] = Counter()
        self.running: list[tuple[str, str]] = []  # name and class of the calls that run now, outermost first
        self.names = {module: name for name, module in model.named_modules() if name}
        self.parameters: dict[int, str] = {}  # each with its first name
        self.first_names: dict[str, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.first_names[name] = self.parameters.setdefault(id(parameter), name)
        self.counter = flop_counter()
        self.saving = Saving([*model.parameters(), *model.buffers(), *inputs.tensors()])

    def pre_forward(self, module: nn.Module, _args: Any) -> None:
        name = self.names[module]
        call = f"{name}@{self.counts[name]}" if self.counts[name] else name
        self.counts[name] += 1
        self.running.append((call, type(module).__name__))
        self.take_parameters(module, name)

    def take_parameters(self, module: nn.Module, name: str) -> None:
        """Take the parameters of a module that runs: `fully_shard` gives it others while it does."""
        own = module.named_parameters(prefix=name, recurse=False)
        self.parameters |= {id(p): self.first_names.get(key, key) for key, p in own}

    def post_forward(self, module: nn.Module, _args: Any, output: Any) -> Any:
        scope = tuple(self.running)
        call, cls = self.running.pop()
        if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
            return output
        outputs, spec = pytree.tree_flatten(output)
        # If the module returns its input unchanged, users of the input bypass the output. A copy keeps them apart.
        leaves = [t.clone() if isinstance(t, Tensor) and t.requires_grad else t for t in outputs]
        self.saving.alias(_tensors(outputs), _tensors(leaves))
        innermost = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self.calls.append(
            _Call(
                name=self.names[module],
                number=int(call.removeprefix(self.names[module])[1:] or 0),
                cls=cls,
                scope=scope,
                outputs=outputs,
                leaves=leaves,
                keys=[self.saving.key(t) if isinstance(t, Tensor) else None for t in outputs],
                edges=[_edge(t) for t in leaves],
                versions=[t._version for t in _tensors(leaves)],
                sequence_number=sequence_number(),
                flops=self.counter.get_total_flops(),
                saves=self.saving.take(),
                in_checkpoint=not self.saving.is_innermost(innermost),
                line=current_line(),
            )
        )
        return pytree.tree_unflatten(leaves, spec)

    def differentiates(self, outputs: Sequence[Any], inputs: Sequence[Any], _accumulate: bool) -> None:
        """Mark the calls through whose values forward itself differentiates: a cut would change the result."""
        oldest = oldest_node(outputs, inputs)
        for call in self.calls:
            if call.sequence_number > oldest:
                call.differentiated = call.differentiated or current_line()[0]


def _recorded(model: nn.Module, inputs: Inputs) -> tuple[_Recorder, Any]:
    """Run the model; return the record of its calls, and its result."""
    recorder = _Recorder(model, inputs)
    handles = [m.register_forward_pre_hook(recorder.pre_forward) for m in recorder.names]
    handles += [m.register_forward_hook(recorder.post_forward) for m in recorder.names]
    handles += [model.register_forward_pre_hook(lambda m, _args: recorder.take_parameters(m, ""))]
    try:
        with recorder.counter, recorder.saving, on_differentiation(recorder.differentiates):
            output = model(*inputs.args, **inputs.kwargs)
    except Exception as error:  # user code may raise any error
        raise CaptureError(f"the model does not run while its calls are recorded: {first_line(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
    return recorder, output


def _edge(leaf: Any) -> Edge | None:
    """The autograd node that made a tensor, and the index of the tensor among the node's outputs."""
    node = leaf.grad_fn if isinstance(leaf, Tensor) else None
    return None if node is None else (node, leaf.output_nr)


def _follow(roots: list[Edge], calls: list[_Call]) -> list[set[int]]:
    """Walk autograd's graph, and fill in `carrying` and `bypassed` of every call.

    Returns:
        For every call, the ids of the parameters used since the previous call returned; at the end, the ids of the
        parameters used after the last call.
    """
    last_use: dict[Edge, int] = {}  # the sequence number of the last node that uses a value
    used: list[set[int]] = [set() for _ in range(len(calls) + 1)]
    ends = [call.sequence_number for call in calls]
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
    _mark_carrying(calls, last_use)
    return used


def _mark_carrying(calls: list[_Call], last_use: dict[Edge, int]) -> None:
    """Sweep over the calls with the set of values made below the call's end that get a gradient from above it."""
    by_age = sorted(last_use, key=lambda edge: edge[0]._sequence_nr())
    crossing: set[Edge] = set()
    position = 0
    for call in calls:
        while position < len(by_age) and by_age[position][0]._sequence_nr() < call.sequence_number:
            crossing.add(by_age[position])
            position += 1
        crossing = {edge for edge in crossing if last_use[edge] >= call.sequence_number}
        call.carrying = [i for i, edge in enumerate(call.edges) if edge in crossing]
        call.bypassed = bool(crossing - {call.edges[i] for i in call.carrying})


def _module(model: nn.Module, calls: list[_Call], used: Sequence[Sequence[str]], facts: HookedCapture) -> HookedModule:
    """The record as a graph: a chain of calls, in which each call takes the outputs of the previous call."""
    graph = fx.Graph()
    start = graph.placeholder("inputs")
    set_record(start, NodeRecord())
    last: tuple[fx.Node, ...] = (start,)
    outputs: dict[str, Output] = {}
    flops = 0
    owned: set[int] = set()
    for call, parameters in zip(calls, used, strict=False):
        node = graph.call_module(call.name, last)
        free_reserved_name(node)
        set_record(node, _node_record(call, tuple(parameters), call.flops - flops, owned))
        flops = call.flops
        if len(call.leaves) == 1 and call.carrying:
            last = (node,)
            _describe(node, call.outputs[0], call.keys[0])
            outputs[node.name] = Output(call.name, call.number, 0)
        else:
            last = tuple(_element(graph, node, call, i) for i in call.carrying) or (node,)
            outputs |= {n.name: Output(call.name, call.number, i) for n, i in zip(last, call.carrying, strict=False)}
        record_of(last[-1]).obstacle = _obstacle(call)
    set_record(graph.output(last), NodeRecord(parameters=tuple(used[-1])))
    return make_module(model, graph, replace(facts, outputs=outputs), HookedModule)


def _obstacle(call: _Call) -> str:
    """The reason why no cut may be after a call; empty if one may."""
    if call.in_checkpoint:
        return (
            "it lies in a checkpointed block, which the front end modules cannot cut: let the block's own forward "
            "call checkpoint"
        )
    if call.differentiated:
        return f"forward itself differentiates through it ({call.differentiated})"
    if call.bypassed:
        return "another value that carries gradient bypasses it, which the front end modules cannot cut"
    return ""


def _node_record(call: _Call, parameters: tuple[str, ...], flops: int, owned: set[int]) -> NodeRecord:
    sizes = {
        key: t.untyped_storage().nbytes() for key, t in zip(call.keys, call.outputs, strict=True) if key is not None
    }
    owns = {key: size for key, size in sizes.items() if key not in owned}
    owned.update(owns)
    elements = sum(t.numel() for t in _tensors(call.outputs))  # element-wise: one operation each
    return NodeRecord(
        flops=flops or elements,
        parameters=parameters,
        carries_gradient=bool(call.carrying),
        backward_flops=2 * flops or elements,
        owns=owns,
        saves=call.saves,
        scope=tuple(name for name, _ in call.scope),
        classes=tuple(cls for _, cls in call.scope),
        line=call.line,
    )


def _element(graph: fx.Graph, node: fx.Node, call: _Call, leaf: int) -> fx.Node:
    """A node for one leaf of the output of a call."""
    element = graph.call_function(operator.getitem, (node, leaf))
    of_call = record_of(node)
    record = NodeRecord(carries_gradient=True, scope=of_call.scope, classes=of_call.classes, line=of_call.line)
    set_record(element, record)
    _describe(element, call.outputs[leaf], call.keys[leaf])
    return element


def _describe(node: fx.Node, tensor: Tensor, key: int | None) -> None:
    record = record_of(node)
    record.shape, record.dtype, record.device = tuple(tensor.shape), tensor.dtype, tensor.device
    record.storages = frozenset() if key is None else frozenset({key})
    record.axis = default_axis(tensor.dim())
    node.meta["val"] = tensor.detach().to("meta")
