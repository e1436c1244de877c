"""Annotate a graph with shapes, bytes, FLOPs and what carries gradient, under fake tensors where it can be."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import NodeMeta, Saving, feature_axis, flop_counter, record_of, storage_key
from dni_fx.model import Inputs, in_train_mode, preserved, tensors_in
from dni_fx.runtime import DecoupledModule

__all__ = ["annotate", "positional"]


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
        read = tensors_in([self.env[i] for i in n.all_input_nodes if i in self.env])
        versions = [t._version for t in read]
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        tensors = tensors_in(value)
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
        record.axis = feature_axis(n, self.fetch_attr, record)
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
        carried = sum(any(t.requires_grad for t in tensors_in(value)) for value in operands)
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
            ignored = [*self.module.parameters(), *self.module.buffers(), *tensors_in(real)]
            saving = Saving(ignored)
            with saving:
                result = getattr(self, node.op)(node.target, *real)
            del result
            return sum(saving.take().values())

    def _spread_gradient(self, writer: fx.Node, written: frozenset[int]) -> None:
        """A write of what carries gradient makes every value in that memory carry it."""
        for node in {n: None for storage in written for n in self.living[storage]}:
            record = record_of(node)
            carries = any(t.requires_grad for t in tensors_in(node.meta["val"]) if not isinstance(t, nn.Parameter))
            if carries and not record.carries_gradient and node is not writer:
                record.carries_gradient, record.gradient_from = True, writer.name

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
