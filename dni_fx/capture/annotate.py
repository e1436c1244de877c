"""Annotate the nodes of a graph with shapes, bytes, FLOPs and the flow of gradients; under fake tensors if possible."""

import contextlib
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from dni_fx.capture.places import line_of_node
from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import NodeRecord, Saving, feature_axis, flop_counter, record_of, set_record, storage_key
from dni_fx.model import Inputs, at_path, fake_mode, in_train_mode, preserved, tensors_in
from dni_fx.runtime import DecoupledModule

__all__ = ["annotate"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Workspace:
    """Stands for the memory that autograd saves for a node and that fake kernels do not report."""

    node: str


class _Draws(TorchDispatchMode):
    """Sees operators that draw random numbers."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return func(*args, **(kwargs or {}))


class _Annotator(fx.Interpreter):
    """Runs the graph, and writes the record and `meta["val"]` of each node."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode, saving: Saving, draws: "_Draws") -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.saving = saving
        self.draws = draws
        self.counted: set[int] = set()  # storages that are in the `owns` of a node
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.ranks = {name: p.dim() for name, p in module.named_parameters()}
        self.numbers: dict[int | _Workspace, int] = {}  # a number for each storage, in order of appearance
        self.nodes_in: dict[int, list[fx.Node]] = {}  # for each storage, the nodes whose values are in it

    def fetch_attr(self, target: str) -> Any:
        return at_path(self.module, target)

    def run_node(self, n: fx.Node) -> Any:
        read = tensors_in([self.env[i] for i in n.all_input_nodes if i in self.env])
        versions = [t._version for t in read]
        before = self.counter.get_total_flops()
        self.draws.seen = False
        value = super().run_node(n)
        flops = self.counter.get_total_flops() - before
        record = NodeRecord(flops=flops, parameters=self._parameters(n), draws=self.draws.seen)
        set_record(n, record)
        n.meta["val"] = value
        tensors = tensors_in(value)
        record.carries_gradient = n.op not in ("placeholder", "get_attr") and any(t.requires_grad for t in tensors)
        record.mutates = frozenset(self._storage(t) for t, v in zip(read, versions, strict=True) if t._version != v)
        self._count_memory(n, record, tensors)
        self._count_flops(n, record, tensors)
        self._describe(n, record, value)
        if record.mutates and any(t.requires_grad for t in read):
            self._spread_gradient(n, record.mutates)
        return value

    def _count_memory(self, node: fx.Node, record: NodeRecord, tensors: list[Tensor]) -> None:
        """Count the bytes that the node allocates and that autograd saves for it; each storage at its first node."""
        record.storages = frozenset(map(self._storage, tensors))
        if node.op.startswith("call"):
            sizes = {self._storage(t): t.untyped_storage().nbytes() for t in tensors}
            record.owns = {storage: size for storage, size in sizes.items() if storage not in self.counted}
        self.counted |= record.storages
        for storage in record.storages:
            self.nodes_in.setdefault(storage, []).append(node)
        unknown = self.saving.unknown
        record.saves = {self._number(key): size for key, size in self.saving.take().items()}
        record.saves_again = {self._number(key): size for key, size in self.saving.take_again().items()}
        if unknown:
            rest = self._bytes_saved(node) - sum(record.saves.values())
            record.saves[self._number(_Workspace(node.name))] = max(0, rest)

    def _count_flops(self, node: fx.Node, record: NodeRecord, tensors: list[Tensor]) -> None:
        if not record.flops and (record.owns or record.mutates) and node.op.startswith("call"):
            record.flops = sum(t.numel() for t in tensors)  # element-wise: one operation each
        if record.carries_gradient or record.mutates:
            record.backward_flops = self._backward_flops(node, record)

    def _describe(self, node: fx.Node, record: NodeRecord, value: Any) -> None:
        """Record the shape and feature axis of the value, and the modules that the node belongs to."""
        if isinstance(value, Tensor):
            record.shape, record.dtype, record.device = tuple(value.shape), value.dtype, value.device
        stack = node.meta.get("nn_module_stack", {})
        record.scope = tuple(stack)
        record.classes = tuple(getattr(cls, "__name__", str(cls)) for _, cls in stack.values())
        record.axis = feature_axis(node, self.fetch_attr, record)
        record.line = line_of_node(node)
        if node.target is torch.amp.autocast_mode._enter_autocast:
            record.obstacle = "an autocast block is open there"

    def _backward_flops(self, node: fx.Node, record: NodeRecord) -> int:
        """FLOPs of the backward pass: those of forward for each operand that gets a gradient, twice at most.

        Fused attention takes 2.5 times those of forward, since it computes its matrix again.
        """
        operands = [self.env[i] for i in node.all_input_nodes if i.op != "get_attr"]
        carried = sum(any(t.requires_grad for t in tensors_in(value)) for value in operands)
        matrices = sum(self.ranks[name] > 1 for name in record.parameters)
        if "scaled_dot_product" in str(node.target):
            return record.flops * 5 // 2
        gradients = 2 if matrices > 1 else carried + matrices
        return record.flops * min(2, max(1, gradients))

    def _bytes_saved(self, node: fx.Node) -> int:
        """Run a node on real tensors, and return the bytes that autograd saves: fake kernels report no workspace."""
        with _disable_current_modes():
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            real = pytree.tree_map_only(Tensor, _materialised, (args, kwargs))
            ignored = [*self.module.parameters(), *self.module.buffers(), *tensors_in(real)]
            saving = Saving(ignored)
            with saving:
                result = getattr(self, node.op)(node.target, *real)
            del result
            return sum(saving.take().values())

    def _spread_gradient(self, writer: fx.Node, written: frozenset[int]) -> None:
        """Mark the nodes whose values are in the storages that `writer` wrote a value with gradient to."""
        for node in {n: None for storage in written for n in self.nodes_in[storage]}:
            record = record_of(node)
            carries = any(t.requires_grad for t in tensors_in(node.meta["val"]) if not isinstance(t, nn.Parameter))
            if carries and not record.carries_gradient and node is not writer:
                record.carries_gradient, record.gradient_from = True, writer.name

    def _storage(self, tensor: Tensor) -> int:
        return self._number(storage_key(tensor))

    def _number(self, key: int | _Workspace) -> int:
        # `env` keeps every value alive, so no address is used twice.
        return self.numbers.setdefault(key, len(self.numbers))

    def _parameters(self, node: fx.Node) -> tuple[str, ...]:
        if node.op == "call_module":
            assert isinstance(node.target, str)
            used = list(self.fetch_attr(node.target).parameters())
        else:
            used = [self.fetch_attr(str(i.target)) for i in node.all_input_nodes if i.op == "get_attr"]
            used = [p for p in used if isinstance(p, nn.Parameter)]
        return tuple(dict.fromkeys(self.names[id(p)] for p in used if p.requires_grad and id(p) in self.names))


def annotate(module: DecoupledModule, inputs: Inputs) -> None:
    """Write a `NodeRecord` to every node of a captured module, in train mode.

    Raises:
        CaptureError: If the graph does not run on these inputs.
    """
    mode = fake_mode(inputs.tensors())
    fake = inputs.map(lambda t: mode.from_tensor(t.detach()))
    try:
        _run(module, fake, mode)
        return
    except Exception as error:  # user code may raise any error when it reads values, which fake tensors do not have
        _log.info("annotating %s on real tensors; fake tensors fail: %s", type(module).__name__, first_line(error))
    try:
        _run(module, inputs.map(lambda t: t.detach().clone()), contextlib.nullcontext())
    except Exception as error:  # user code may raise any error
        raise CaptureError(
            f"the model does not run on {', '.join(str(list(t.shape)) for t in inputs.tensors())}: {first_line(error)}"
        ) from None
    for node in module.graph.nodes:  # only sizes and dtypes are used later, so the values can be freed
        node.meta["val"] = pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), node.meta["val"])


def _run(module: DecoupledModule, inputs: Inputs, mode: AbstractContextManager[Any]) -> None:
    with preserved(module), torch.enable_grad():
        in_train_mode(module)
        counter = flop_counter()
        state = [*module.parameters(), *module.buffers()]
        if isinstance(mode, FakeTensorMode):  # an operator may take a parameter or its fake tensor
            state += [mode.from_tensor(t) for t in state]
        saving = Saving([*state, *inputs.tensors()])
        with mode, counter, saving, _Draws() as draws:
            _Annotator(module, counter, saving, draws).run(*module.dni_values_for(inputs))


def _materialised(tensor: Tensor) -> Tensor:
    """Zeros in the shape of a fake tensor; any other tensor itself."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device).requires_grad_(tensor.requires_grad)
