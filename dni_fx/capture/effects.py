"""What forward does besides computing its result: it writes to parameters, or differentiates.

A graph repeats no such effect, and a cut inside of a differentiation changes its result. So a front end keeps the
module whole that has the effect.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dni_fx.capture.places import current_line
from dni_fx.graph import sequence_number

__all__ = ["Effect", "effects_of_forward", "oldest_node", "on_differentiation"]

Differentiation = Callable[[Sequence[Any], Sequence[Any], bool], None]  # of outputs, to inputs; into `.grad`?

_RETURN_IT = (
    "and a cut goes backward through a segment, too: return the loss of that backward pass from forward, and add it to "
    "the loss in the training loop"
)
_USE_AUTOGRAD = (
    "which runs in no context that measures the memory of a segment: use torch.autograd.grad with create_graph=True"
)

_ATTRIBUTES: dict[str, Any] = {name: getattr(Tensor, name) for name in ("data", "requires_grad", "grad")}

_SETTERS = {
    _ATTRIBUTES["data"].__set__: "writes to {}",
    _ATTRIBUTES["requires_grad"].__set__: "sets requires_grad of {}",
    _ATTRIBUTES["grad"].__set__: "sets the gradient of {}",
    Tensor.requires_grad_: "sets requires_grad of {}",
    Tensor.register_hook: "registers a hook on {}",
}


@dataclass(frozen=True)
class Effect:
    """A side effect of forward.

    Attributes:
        text: The line, and what happens there.
        module: The name of the smallest module that contains the effect; empty for the model itself.
        remedy: The reason why no front end takes the effect, and the way out; empty if one takes it.
    """

    text: str
    module: str
    remedy: str = ""


@contextlib.contextmanager
def effects_of_forward(model: nn.Module, tensors: Mapping[str, Tensor], effects: list[Effect]) -> Iterator[None]:
    """Add the new effects of the code that runs in this context to `effects`.

    Args:
        tensors: Parameters and other tensors that forward must not write to, by name.
    """
    watch = _Watch(model, tensors, effects)
    patched = mock.patch.object(nn.Module, "register_parameter", watch.around(nn.Module.register_parameter))
    entering = hooks.register_module_forward_pre_hook(watch.pre_forward)
    leaving = hooks.register_module_forward_hook(watch.post_forward, always_call=True)
    try:
        with patched, on_differentiation(watch.differentiates), _Functions(watch), _Operators(watch):
            yield
    finally:
        entering.remove()
        leaving.remove()


@contextlib.contextmanager
def on_differentiation(callback: Differentiation) -> Iterator[None]:
    """Call `callback` before each call of `backward` or `torch.autograd.grad`."""
    run: Callable[..., Any] = vars(torch.autograd)["_engine_run_backward"]

    @functools.wraps(run)
    def with_callback(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = kwargs.get("inputs", args[3] if len(args) > 3 else ())
        callback(t_outputs, inputs or (), kwargs.get("accumulate_grad", False))
        return run(t_outputs, *args, **kwargs)

    with mock.patch.object(torch.autograd, "_engine_run_backward", with_callback):
        yield


def oldest_node(outputs: Iterable[Any], inputs: Iterable[Any]) -> int:
    """The least sequence number of the autograd nodes between some outputs and inputs."""
    ends = {_edge(value) for value in inputs}
    stack = [edge for edge in map(_edge, outputs) if edge not in ends]
    seen = set(stack)
    oldest = _sequence_number()
    while stack:
        node, _ = stack.pop()
        if node is None or hasattr(node, "variable"):
            continue
        oldest = min(oldest, node._sequence_nr())
        following = {edge for edge in node.next_functions if edge not in seen and edge not in ends}
        seen |= following
        stack += following
    return oldest


def _edge(value: Any) -> tuple[Any, int]:
    """The autograd node of a tensor or of a gradient edge, and the index of the output of that node."""
    return (value.grad_fn, value.output_nr) if isinstance(value, Tensor) else (value.node, value.output_nr)


class _Watch:
    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], effects: list[Effect]) -> None:
        self.effects = effects
        self.names = {module: name for name, module in model.named_modules()}
        self.described = {id(t): f"the {_kind(t)} {name!r}" for name, t in tensors.items()}
        self.storages = {_storage(t): self.described[id(t)] for t in tensors.values()}
        self.running: list[tuple[nn.Module, int]] = []  # the calls that run now, each with its first sequence number

    def pre_forward(self, module: nn.Module, _args: Any) -> None:
        self.running.append((module, _sequence_number()))

    def post_forward(self, module: nn.Module, _args: Any, _output: Any) -> None:
        while self.running and self.running.pop()[0] is not module:
            pass

    def around(self, register: Callable[..., None]) -> Callable[..., None]:
        def register_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            register(module, name, parameter)
            if module in self.names:
                path = f"{self.names[module]}.{name}".lstrip(".")
                self.add(f"puts a new parameter in the place of {path!r}")

        return register_parameter

    def differentiates(self, outputs: Sequence[Any], inputs: Sequence[Any], accumulate: bool) -> None:
        oldest = oldest_node(outputs, inputs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self.add("differentiates with torch.func", oldest, _USE_AUTOGRAD)
        elif accumulate:
            self.add("runs backward() itself", oldest, _RETURN_IT)
        else:
            self.add("calls torch.autograd.grad itself", oldest)

    def writes(self, tensor: Tensor) -> None:
        name = self.storages.get(_storage(tensor))
        # A layer of torch may renormalise its weight, and every front end leaves that to the layer.
        if name is not None and not (self.running and _is_of_torch(self.running[-1][0])):
            self.add(f"writes to {name}")

    def sets(self, tensor: Tensor, what: str) -> None:
        if id(tensor) in self.described:
            self.add(what.format(self.described[id(tensor)]))
            self.storages[_storage(tensor)] = self.described[id(tensor)]

    def add(self, what: str, oldest: int | None = None, remedy: str = "") -> None:
        """Add an effect of the innermost call that started before the autograd node `oldest`."""
        calls = [module for module, start in self.running if oldest is None or start <= oldest]
        module = next((m for m in reversed(calls) if m in self.names), None)
        place, line = current_line()
        cls = type(self.running[-1][0]).__name__ if self.running else "the model"
        text = f"{place}: {line!r}: forward of {cls} {what}"
        effect = Effect(text, "" if module is None else self.names[module], remedy)
        if effect not in self.effects:
            self.effects.append(effect)


class _Functions(TorchFunctionMode):
    """Sees assignments to attributes of tensors."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SETTERS:
            self.watch.sets(args[0], _SETTERS[func])
        return result


class _Operators(TorchDispatchMode):
    """Sees writes in place."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = kwargs.get(argument.name, args[index] if index < len(args) else None)
                    for tensor in pytree.tree_leaves(value):
                        if isinstance(tensor, Tensor):
                            self.watch.writes(tensor)
        return func(*args, **kwargs)


def _sequence_number() -> int:
    with torch.inference_mode(False), torch.enable_grad():  # it is the number of an autograd node
        return sequence_number()


def _kind(tensor: Tensor) -> str:
    return "parameter" if isinstance(tensor, nn.Parameter) else "attribute"


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # it has none, such as a sparse tensor
        return None
