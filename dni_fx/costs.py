"""Annotate a graph with shapes, bytes, FLOPs and what carries gradient, under fake tensors: nothing is computed."""

from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from dni_fx import meta
from dni_fx.errors import CaptureError
from dni_fx.inputs import Inputs
from dni_fx.meta import NodeMeta
from dni_fx.preserve import preserved

__all__ = ["annotate", "dataflow"]

_MAPS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_ROWS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_MAP_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm")
_ROW_FUNCTIONS = ("linear", "layer_norm", "embedding", "scaled_dot_product_attention")


class _Annotator(fx.Interpreter):
    """Runs the graph on fake tensors, and writes `node.meta["dni"]` and `node.meta["val"]`."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.seen: set[int] = set()  # storages that have been counted
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.storage_ids: dict[int, int] = {}

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
        n.meta["dni"], n.meta["val"] = record, value
        return value

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


def annotate(module: fx.GraphModule, inputs: Inputs) -> None:
    """Write a `NodeMeta` to every node of a captured module, in train mode.

    Raises:
        CaptureError: If the graph does not run on these inputs.
    """
    counter = FlopCounterMode(display=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with preserved(module), torch.enable_grad():
        module.train()
        fake = inputs.map(lambda t: mode.from_tensor(t.detach()))
        arguments = _positional(module, fake)
        with mode, counter:
            try:
                _Annotator(module, counter).run(*arguments)
            except Exception as error:
                raise CaptureError(
                    f"the model does not run on {', '.join(str(list(t.shape)) for t in inputs.tensors())}: "
                    f"{str(error).strip().splitlines()[0]}"
                ) from None


def _positional(module: fx.GraphModule, inputs: Inputs) -> list[Any]:
    """Values for the placeholders in order, as fx.Interpreter wants them."""
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
    name = getattr(node.target, "__name__", "")
    if name in _MAP_FUNCTIONS:
        return 1
    if name in _ROW_FUNCTIONS:
        return -1
    for source in node.all_input_nodes:
        above = meta.of(source)
        if source.op in ("call_module", "call_function", "call_method") and above.carries_gradient:
            same_rank = above.shape is not None and len(above.shape) == len(record.shape)
            if same_rank and name not in ("permute", "transpose", "movedim"):
                return above.axis
    return 1 if len(record.shape) in (4, 5) and name not in ("permute", "transpose") else -1


def dataflow(graph: fx.Graph) -> "nx.DiGraph[str]":
    """The graph as networkx sees it: nodes in order, with the attributes that the partitioner reads.

    Node attributes: `weight` (FLOPs), `size` (bytes that cross a cut), `parameters` (how many trainable ones it uses),
    `crosses` (must get a synthesizer at a cut between it and its users), `legal` (it can get one), `tuple` (it is
    no single tensor), `kind` (for messages), `storages` and `mutates`.
    """
    flow: nx.DiGraph[str] = nx.DiGraph()
    for node in graph.nodes:
        record = meta.of(node)
        flow.add_node(
            node.name,
            weight=record.flops,
            parameters=len(record.parameters),
            crosses=record.carries_gradient,
            legal=record.dtype is not None and record.dtype.is_floating_point and bool(record.shape),
            storages=record.storages,
            mutates=record.mutates,
            size=_size(node),
            kind=_kind(record),
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
