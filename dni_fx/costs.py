"""Annotate a graph with shapes, bytes, FLOPs and what carries gradient, under fake tensors where it can be."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from dni_fx import meta
from dni_fx.errors import CaptureError, first_line
from dni_fx.inputs import Inputs
from dni_fx.meta import NodeMeta
from dni_fx.module import DecoupledModule
from dni_fx.preserve import in_train_mode, preserved

__all__ = ["annotate", "dataflow", "flop_counter"]

_MAPS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_ROWS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_MAP_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm")
_ROW_FUNCTIONS = ("linear", "layer_norm", "embedding", "scaled_dot_product_attention")
_MOVES = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")


class _OneModule:
    """Stands for the tracker of FlopCounterMode, whose hooks on every module cost time and break reversible layers."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """Counts FLOPs in total, by no module."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


class _Annotator(fx.Interpreter):
    """Runs the graph, and writes `node.meta["dni"]` and `node.meta["val"]`."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.seen: set[int] = set()  # storages that have been counted
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.storage_ids: dict[int, int] = {}
        self.living: dict[int, list[fx.Node]] = {}  # the nodes whose values are in each storage

    def run_node(self, n: fx.Node) -> Any:
        read = _tensors([self.env[i] for i in n.all_input_nodes if i in self.env])
        versions = [t._version for t in read]
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        tensors = _tensors(value)
        storages = frozenset(map(self._storage, tensors))
        fresh = storages - self.seen
        self.seen |= storages
        record = NodeMeta(
            bytes=sum(t.numel() * t.element_size() for t in tensors if self._storage(t) in fresh),
            flops=self.counter.get_total_flops() - before,
            parameters=self._parameters(n),
            carries_gradient=n.op not in ("placeholder", "get_attr") and any(t.requires_grad for t in tensors),
            storages=storages,
            mutates=frozenset(self._storage(t) for t, v in zip(read, versions, strict=True) if t._version != v),
        )
        if not record.flops and (fresh or record.mutates) and n.op.startswith("call"):
            record.flops = sum(t.numel() for t in tensors)  # element-wise: one operation each
        if isinstance(value, Tensor):
            record.shape, record.dtype, record.device = tuple(value.shape), value.dtype, value.device
        stack = n.meta.get("nn_module_stack", {})
        record.scope = tuple(stack)
        record.classes = tuple(getattr(cls, "__name__", str(cls)) for _, cls in stack.values())
        record.axis = _feature_axis(n, self.fetch_attr, record)
        if n.target is torch.amp.autocast_mode._enter_autocast:
            record.obstacle = "an autocast block is open there"
        n.meta["dni"], n.meta["val"] = record, value
        for storage in storages:
            self.living.setdefault(storage, []).append(n)
        if record.mutates and any(t.requires_grad for t in read):
            self._spread_gradient(n, record.mutates)
        return value

    def _spread_gradient(self, writer: fx.Node, written: frozenset[int]) -> None:
        """A write of what carries gradient makes every value in that memory carry it."""
        for node in {n: None for storage in written for n in self.living[storage]}:
            record = meta.of(node)
            carries = any(t.requires_grad for t in _tensors(node.meta["val"]) if not isinstance(t, nn.Parameter))
            if carries and not record.carries_gradient and node is not writer:
                record.carries_gradient, record.gains = True, writer.name

    def _storage(self, tensor: Tensor) -> int:
        # Numbered in order of appearance. `env` keeps every value alive, so no address is used twice.
        return self.storage_ids.setdefault(tensor.untyped_storage()._cdata, len(self.storage_ids))

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
        with mode, counter:
            _Annotator(module, counter).run(*_positional(module, inputs))


def _positional(module: DecoupledModule, inputs: Inputs) -> list[Any]:
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


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _feature_axis(node: fx.Node, fetch: Any, record: NodeMeta) -> int:
    """1 for maps (N, C, ...), -1 for vectors and sequences: as the nearest layer upstream has it."""
    if record.shape is None or len(record.shape) < 3:
        return -1
    if node.op == "call_module":
        layer = fetch(node.target)
        if isinstance(layer, _MAPS):
            return 1
        if isinstance(layer, _ROWS):
            return -1
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.split(".")[0]  # an ATen operator's name ends in that of its overload
    if name in _MAP_FUNCTIONS:
        return 1
    if name in _ROW_FUNCTIONS:
        return -1
    for source in node.all_input_nodes:
        above = meta.of(source)
        if source.op.startswith("call") and above.carries_gradient and above.shape is not None:
            axis = _carried(node, name, above.shape, above.axis, record.shape)
            if axis is not None:
                return axis
    return 1 if len(record.shape) in (4, 5) and name not in _MOVES else -1


def _carried(node: fx.Node, name: str, above: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> int | None:
    """Where the feature axis of an operand of shape `above` is in the result; None: it is lost."""
    if name in _MOVES:
        return _moved(node, name, axis % len(above), len(above))
    if len(above) == len(shape):
        return axis
    if axis == 1 and len(above) > 2:  # flattened, or averaged over space
        return 1 if above[:2] == shape[:2] else None
    return axis if above[-1] == shape[-1] else None


def _moved(node: fx.Node, name: str, axis: int, rank: int) -> int | None:
    known_by_size = torch.empty(list(range(1, rank + 1)), device="meta")
    try:
        moved = getattr(known_by_size, name)(*node.args[1:], **node.kwargs)
        place = list(moved.shape).index(axis + 1)
    except (TypeError, RuntimeError, ValueError):  # where to is no literal of the graph
        return None
    return {0: None, rank - 1: -1}.get(place, place)


def dataflow(graph: fx.Graph) -> "nx.DiGraph[str]":
    """The graph as networkx sees it: nodes in order, with the attributes that the partitioner reads.

    Node attributes: `weight` (FLOPs), `size` (bytes that cross a cut), `parameters` (how many trainable ones it
    uses), `matrix` (one of them is no vector), `crosses` (must get a synthesizer at a cut between it and its users),
    `legal` (it can get one), `tuple` (it is no single tensor), `kind` (for messages), `storages` and `mutates`,
    `obstacle` (why there can be no cut between it and its users), and `gains` (the node whose write makes it cross).
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    owner: Any = graph.owning_module
    axes = {name: parameter.dim() for name, parameter in owner.named_parameters()}
    for node in graph.nodes:
        record = meta.of(node)
        flow.add_node(
            node.name,
            weight=record.flops,
            parameters=len(record.parameters),
            matrix=any(axes[name] > 1 for name in record.parameters),
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
        flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return flow


def _size(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(node.meta.get("val")))


def _kind(record: NodeMeta) -> str:
    if record.dtype is None:
        return "no single tensor"
    return f"a {str(record.dtype).removeprefix('torch.')} tensor of shape {list(record.shape or ())}"
