"""Pieces of segments whose activations the backward pass computes again, as torch.utils.checkpoint does.

In the graph, `ops.begin_piece` and `ops.end_piece` stand around the nodes of a piece. What autograd would save between
them is dropped; the first node of the piece that runs backward computes all of it again, by a program made of the same
nodes.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.comptime import comptime
from torch.utils.checkpoint import _checkpoint_without_reentrant_generator, noop_context_fn

from dni_fx import ops
from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.graph import operation_name
from dni_fx.model import at_path
from dni_fx.runtime.programs import call, placeholders

__all__ = ["NOT_COMPILED", "Pieces", "close_after_errors", "connect_pieces"]

NOT_COMPILED = (
    "inside='checkpoint' cannot be compiled: its pieces run a second time in the backward pass, and a compiled part "
    "would save other tensors than that run. Leave inside or compile out; torch.compile has a memory budget of its "
    "own, torch._functorch.config.activation_memory_budget"
)


@dataclass
class _Buffer:
    """A buffer of a module before the piece has run: modules may write to their buffers."""

    owner: nn.Module
    name: str
    tensor: Tensor
    version: int
    before: Tensor

    def has_changed(self) -> bool:
        now = self.owner._buffers.get(self.name)
        return now is not self.tensor or now._version != self.version


def _refuse(_context: object) -> None:
    raise DniFxError(NOT_COMPILED)


class RunningPiece:
    """One piece in one forward pass, from its begin to its end; then the backward pass keeps this for its second run.

    Attributes:
        buffers: The buffers of the borrowed modules that the piece has changed.
    """

    def __init__(self, pieces: "Pieces", index: int, inputs: Sequence[Any], borrowed: Sequence[Any]) -> None:
        self.pieces, self.program = pieces, pieces.programs[index]
        self.borrowed = borrowed
        self.modules = [value for value in borrowed if isinstance(value, nn.Module)]
        self.buffers = [
            _Buffer(module, name, buffer, buffer._version, buffer.clone())
            for module, name, buffer in _buffers(self.modules)
        ]
        parameters = [value for value in borrowed if isinstance(value, nn.Parameter)]
        parameters += [parameter for module in self.modules for parameter in module.parameters()]
        self.versions = [(parameter, parameter._version) for parameter in parameters]
        self._saving: Generator[None, None, None] = _checkpoint_without_reentrant_generator(
            self._run_again, True, noop_context_fn, "default", False, True, *inputs
        )
        next(self._saving)

    def end(self) -> None:
        """Let autograd save tensors again."""
        next(self._saving, None)
        self.pieces.running = None
        self.buffers = [buffer for buffer in self.buffers if buffer.has_changed()]

    def close(self) -> None:
        """Let autograd save tensors again, after an error in the piece."""
        self._saving.close()

    def _run_again(self, *inputs: Any) -> None:
        if any(parameter._version != version for parameter, version in self.versions):
            raise BackwardOrderError(
                "a parameter was changed between the forward and the backward pass of a part that inside='checkpoint' "
                "computes again: step the optimizer after the backward pass"
            )
        with _with_copied_buffers(self.modules, self.buffers):
            self.program(*inputs, *self.borrowed)


class Pieces(nn.Module):
    """All pieces of a net.

    Attributes:
        programs: The nodes of each piece, as a function of its inputs and of what it borrows.
        running: The piece that runs forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[fx.GraphModule] = []
        self.running: RunningPiece | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a net makes the programs from its own graph."""
        return self.__dict__ | {"programs": [], "running": None}

    def begin(self, index: int, inputs: Sequence[Any], borrowed: Sequence[Any]) -> RunningPiece | None:
        """Begin a piece; None in eval mode and where grad mode is off."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        if torch.compiler.is_compiling():
            comptime(_refuse)  # an error of traced code would let torch.compile go on without a warning
        self.running = RunningPiece(self, index, inputs, borrowed)
        return self.running

    def close(self) -> None:
        """Close the piece in which an error was raised."""
        running, self.running = self.running, None
        if running is not None:
            running.close()


def close_after_errors(net: fx.GraphModule) -> None:
    """After an error in a piece of a net, let autograd save tensors again."""
    if _has_pieces(net):
        net.register_forward_hook(_post_forward, always_call=True)


def _post_forward(net: Any, _args: Any, _output: Any) -> None:
    net.dni.pieces.close()


def connect_pieces(net: fx.GraphModule) -> None:
    """Make the programs of all pieces from the graph of a rewritten net."""
    if _has_pieces(net):
        begins = [node for node in net.graph.nodes if node.target is ops.begin_piece]
        programs = [fx.GraphModule(nn.Module(), _program(net, begin), "Piece") for begin in begins]
        net.get_submodule("dni.pieces").programs = programs  # type: ignore[assignment]


def _has_pieces(net: nn.Module) -> bool:
    return "dni" in net._modules and hasattr(net.dni, "pieces")


def _program(net: fx.GraphModule, begin: fx.Node) -> fx.Graph:
    """The nodes of a piece as a graph without modules: placeholders take its inputs, modules and parameters."""
    graph = fx.Graph()
    arguments: Any = begin.args
    _, _, inputs, borrowed = arguments
    values: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"value_{i}") for i, node in enumerate(inputs)}
    taken = {str(node.target): graph.placeholder(f"borrowed_{i}") for i, node in enumerate(borrowed)}
    placeholder_of = placeholders(net, taken)
    outside = {*values.values(), *taken.values()}

    def value(node: fx.Node) -> fx.Node:
        return placeholder_of(node) if node.op == "get_attr" else values[node]

    def copied(node: fx.Node) -> fx.Node:
        """A copy of a running statistic, which batch norm moves."""
        is_buffer = node.op == "get_attr" and not isinstance(at_path(net, str(node.target)), nn.Parameter)
        return graph.call_method("clone", (value(node),)) if is_buffer else value(node)

    node = begin.next
    while node.target is not ops.end_piece:
        first = value(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op == "call_module":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            values[node] = graph.call_function(call, (placeholder_of(node), *args), kwargs)
        elif first in outside and operation_name(node).endswith("_"):
            assert first is not None
            values[node] = first  # a counter, or another buffer that no node reads: it was written to already
            outside.add(first)
        elif node.op != "get_attr":
            values[node] = graph.node_copy(node, copied if "batch_norm" in operation_name(node) else value)
        node = node.next
    graph.output(None)
    return graph


def _buffers(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Each buffer of some modules, with its module and its name."""
    owners = dict.fromkeys(owner for module in modules for owner in module.modules() if owner.training)
    for owner in owners:
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                yield owner, name, buffer


@contextmanager
def _with_copied_buffers(modules: Sequence[nn.Module], changed: Sequence[_Buffer]) -> Iterator[None]:
    """Give modules copies of their buffers, as they were before the piece ran; then their own again."""
    before = {(buffer.owner, buffer.name): buffer.before for buffer in changed}
    own = list(_buffers(modules))
    try:
        for owner, name, buffer in own:
            owner._buffers[name] = before.get((owner, name), buffer).clone()
        yield
    finally:
        for owner, name, buffer in own:
            owner._buffers[name] = buffer
