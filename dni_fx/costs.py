"""Annotate a graph with shapes, bytes, FLOPs and what carries gradient, under fake tensors where it can be."""

import contextlib
import math
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from dni_fx import axes, meta
from dni_fx.errors import CaptureError, first_line
from dni_fx.inputs import Inputs
from dni_fx.meta import NodeMeta
from dni_fx.module import DecoupledModule
from dni_fx.preserve import in_train_mode, preserved
from dni_fx.saving import Saving, storage_key

__all__ = ["annotate", "dataflow", "flop_counter", "positional", "resident"]

_SUMS = ("add", "add_", "iadd")


class _OneModule:
    """Stands for the tracker of FlopCounterMode, whose hooks on every module cost time and break reversible layers."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """Counts FLOPs in total, by no module."""
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={aten.mkldnn_rnn_layer: _layer_flops, aten._cudnn_rnn: _stack_flops, aten.lstm: _stack_flops},
    )
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


def _layer_flops(sequence: Any, w_input: Any, w_hidden: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """A recurrent layer multiplies its weights with every step of every row; shapes (T, N, features)."""
    flops: int = 2 * math.prod(sequence[:2]) * (math.prod(w_input) + math.prod(w_hidden))
    return flops


def _stack_flops(sequence: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    flops: int = 2 * math.prod(sequence[:2]) * sum(math.prod(w) for w in weights if len(w) == 2)
    return flops


class _Annotator(fx.Interpreter):
    """Runs the graph, and writes `node.meta["dni"]` and `node.meta["val"]`."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode, saving: Saving) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.saving = saving
        self.seen: set[int] = set()  # storages that have been counted
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.ranks = {name: p.dim() for name, p in module.named_parameters()}
        self.storage_ids: dict[int, int] = {}
        self.living: dict[int, list[fx.Node]] = {}  # the nodes whose values are in each storage

    def run_node(self, n: fx.Node) -> Any:
        read = _tensors([self.env[i] for i in n.all_input_nodes if i in self.env])
        versions = [t._version for t in read]
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        tensors = _tensors(value)
        storages = frozenset(map(self._storage, tensors))
        fresh = {self._storage(t): t.untyped_storage().nbytes() for t in tensors if self._storage(t) not in self.seen}
        self.seen |= storages
        unknown = self.saving.unknown
        record = NodeMeta(
            owns=fresh if n.op.startswith("call") else {},
            saves={self._number(key): size for key, size in self.saving.take().items()},
            flops=self.counter.get_total_flops() - before,
            parameters=self._parameters(n),
            carries_gradient=n.op not in ("placeholder", "get_attr") and any(t.requires_grad for t in tensors),
            storages=storages,
            mutates=frozenset(self._storage(t) for t, v in zip(read, versions, strict=True) if t._version != v),
        )
        if unknown:
            record.saves[self._number(-1 - len(self.storage_ids))] = max(
                0, self._workspace(n) - sum(record.saves.values())
            )
        if not record.flops and (fresh or record.mutates) and n.op.startswith("call"):
            record.flops = sum(t.numel() for t in tensors)  # element-wise: one operation each
        if record.carries_gradient or record.mutates:
            record.backward_flops = self._backward_flops(n, record)
        if isinstance(value, Tensor):
            record.shape, record.dtype, record.device = tuple(value.shape), value.dtype, value.device
        stack = n.meta.get("nn_module_stack", {})
        record.scope = tuple(stack)
        record.classes = tuple(getattr(cls, "__name__", str(cls)) for _, cls in stack.values())
        record.axis = axes.feature_axis(n, self.fetch_attr, record)
        if n.target is torch.amp.autocast_mode._enter_autocast:
            record.obstacle = "an autocast block is open there"
        n.meta["dni"], n.meta["val"] = record, value
        for storage in storages:
            self.living.setdefault(storage, []).append(n)
        if record.mutates and any(t.requires_grad for t in read):
            self._spread_gradient(n, record.mutates)
        return value

    def _backward_flops(self, node: fx.Node, record: NodeMeta) -> int:
        """As many as forward for each operand that gets a gradient; fused attention computes its matrix again too."""
        operands = [self.env[i] for i in node.all_input_nodes if i.op != "get_attr"]
        carried = sum(any(t.requires_grad for t in _tensors(value)) for value in operands)
        matrices = sum(self.ranks[name] > 1 for name in record.parameters)
        if "scaled_dot_product" in str(node.target):
            return record.flops * 5 // 2
        wanted = 2 if matrices > 1 else carried + matrices
        return record.flops * min(2, max(1, wanted))

    def _workspace(self, node: fx.Node) -> int:
        """What autograd keeps for a node on real tensors: the fake kernels of recurrent layers do not know."""
        with _disable_current_modes():
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            real = pytree.tree_map_only(Tensor, _materialised, (args, kwargs))
            ignored = [*self.module.parameters(), *self.module.buffers(), *_tensors(real)]
            saving = Saving(ignored)
            with saving:
                result = getattr(self, node.op)(node.target, *real)
            del result
            return sum(saving.take().values())

    def _spread_gradient(self, writer: fx.Node, written: frozenset[int]) -> None:
        """A write of what carries gradient makes every value in that memory carry it."""
        for node in {n: None for storage in written for n in self.living[storage]}:
            record = meta.of(node)
            carries = any(t.requires_grad for t in _tensors(node.meta["val"]) if not isinstance(t, nn.Parameter))
            if carries and not record.carries_gradient and node is not writer:
                record.carries_gradient, record.gains = True, writer.name

    def _storage(self, tensor: Tensor) -> int:
        return self._number(storage_key(tensor))

    def _number(self, key: int) -> int:
        # In order of appearance. `env` keeps every value alive, so no address is used twice.
        return self.storage_ids.setdefault(key, len(self.storage_ids))

    def _parameters(self, node: fx.Node) -> tuple[str, ...]:
        if node.op == "call_module":
            assert isinstance(node.target, str)
            used = list(self.fetch_attr(node.target).parameters())
        else:
            used = [self.fetch_attr(str(i.target)) for i in node.all_input_nodes if i.op == "get_attr"]
            used = [p for p in used if isinstance(p, nn.Parameter)]
        return tuple(dict.fromkeys(self.names[id(p)] for p in used if p.requires_grad and id(p) in self.names))


def annotate(module: DecoupledModule, inputs: Inputs) -> None:
    """Write a `NodeMeta` to every node of a captured module, in train mode.

    Raises:
        CaptureError: If the graph does not run on these inputs.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = inputs.map(lambda t: mode.from_tensor(t.detach()))
    try:
        _run(module, fake, mode)
        return
    except Exception:
        pass  # a module that is kept whole may look at values, which fake tensors have none of: run it for real
    try:
        _run(module, inputs.map(lambda t: t.detach().clone()), contextlib.nullcontext())
    except Exception as error:
        raise CaptureError(
            f"the model does not run on {', '.join(str(list(t.shape)) for t in inputs.tensors())}: {first_line(error)}"
        ) from None
    for node in module.graph.nodes:  # the sizes are enough
        node.meta["val"] = pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), node.meta["val"])


def _run(module: DecoupledModule, inputs: Inputs, mode: AbstractContextManager[Any]) -> None:
    with preserved(module), torch.enable_grad():
        in_train_mode(module)
        counter = flop_counter()
        state = [*module.parameters(), *module.buffers()]
        if isinstance(mode, FakeTensorMode):  # an operator may be given a parameter or its fake
            state += [mode.from_tensor(t) for t in state]
        saving = Saving([*state, *inputs.tensors()])
        with mode, counter, saving:
            _Annotator(module, counter, saving).run(*positional(module, inputs))


def positional(module: DecoupledModule, inputs: Inputs) -> list[Any]:
    """Values for the placeholders in order, as fx.Interpreter wants them."""
    if "dni_calling" in module.__dict__:
        forward = module.__dict__["dni_original"].forward
        return list(module.__dict__["dni_calling"].flatten(forward, inputs.args, inputs.kwargs))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    values = list(inputs.args)
    for node in placeholders[len(values) :]:
        if node.target in inputs.kwargs:
            values.append(inputs.kwargs[str(node.target)])
        else:
            values.append(node.args[0] if node.args else None)
    return values


def _materialised(tensor: Tensor) -> Tensor:
    """Any tensor of the same shape; a parameter is itself."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device).requires_grad_(tensor.requires_grad)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def dataflow(
    graph: fx.Graph,
    times: Mapping[str, tuple[float, float]] | None = None,
    handed_on: Set[str] = frozenset(),
) -> "nx.DiGraph[str]":
    """The graph as networkx sees it: nodes in order, with the attributes that the partitioner reads.

    Args:
        times: Measured seconds of each node, forward and backward, in place of FLOPs.
        handed_on: Nodes that the graph gives cut off, as a recurrent model's state: they go out round all cuts.

    Graph attribute: `largest`, the bytes of the largest trainable parameter.
    Node attributes, of what it costs: `forward` and `backward` (FLOPs), `owns` and `saves` (bytes by storage of what it
    makes, and of what autograd keeps for it and for none before), `gradient` (bytes of the gradients of the trainable
    parameters that it is the first to use), `sums` (it hands its gradient on as it is).
    Of what may be cut: `size` (bytes that cross a cut), `parameters` (how many trainable ones it uses), `matrix` (one
    of them is no vector), `crosses` (must get a synthesizer at a cut between it and its users), `legal` (it can get
    one), `tuple` (it is no single tensor), `kind` (for messages), `storages` and `mutates`, `obstacle` (why there can
    be no cut between it and its users), and `gains` (the node whose write makes it cross).
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    owner: Any = graph.owning_module
    parameters = dict(owner.named_parameters())
    unused = {name: p.nbytes for name, p in parameters.items() if p.requires_grad}
    flow.graph["largest"] = max(unused.values(), default=0)
    for node in graph.nodes:
        record = meta.of(node)
        flow.add_node(
            node.name,
            forward=times[node.name][0] if times else record.flops,
            backward=times[node.name][1] if times else record.backward_flops,
            owns=record.owns,
            saves=record.saves,
            gradient=sum(unused.pop(name, 0) for name in record.parameters),
            parameters=len(record.parameters),
            sums=_is_sum(node),
            matrix=any(parameters[name].dim() > 1 for name in record.parameters),
            crosses=record.carries_gradient,
            legal=record.dtype is not None and record.dtype.is_floating_point and bool(record.shape),
            storages=record.storages,
            mutates=record.mutates,
            size=_size(node),
            kind=_kind(record),
            obstacle=record.obstacle,
            gains=record.gains,
            tuple=record.shape is None,
        )
        sources = [source.name for source in node.all_input_nodes]
        flow.add_edges_from((name, node.name) for name in sources if node.op != "output" or name not in handed_on)
    return flow


def resident(module: nn.Module, inputs: Inputs, optimizer_states: int) -> int:
    """Bytes there all along: parameters, `optimizer_states` times as much for trainable ones, buffers, the batch."""
    parameters = [t.nbytes * (1 + optimizer_states * t.requires_grad) for t in module.parameters()]
    return sum(parameters) + sum(t.nbytes for t in (*module.buffers(), *inputs.tensors()))


def _size(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(node.meta.get("val")))


def _is_sum(node: fx.Node) -> bool:
    """Whether the gradients of what it adds up are its own."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    shapes = {meta.of(source).shape for source in node.all_input_nodes}
    return name.split(".")[0] in _SUMS and not node.kwargs and shapes == {meta.of(node).shape}


def _kind(record: NodeMeta) -> str:
    if record.dtype is None:
        return "no single tensor"
    return f"a {str(record.dtype).removeprefix('torch.')} tensor of shape {list(record.shape or ())}"
