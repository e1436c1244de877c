"""The module of the front end `export`: its graph takes a flat list of tensors, and is for train mode alone."""

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _loader
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.errors import DniFxError, SourceError
from dni_fx.model import (
    MODE,
    Captured,
    Inputs,
    Path,
    Read,
    Reads,
    by_name,
    by_path,
    canonical,
    has_path,
    other_argument,
    same_value,
    shown,
)
from dni_fx.runtime.module import DecoupledModule, call_original
from dni_fx.runtime.outputs import Result, result_of_graph

__all__ = ["Calling", "FlatCapture", "FlatModule", "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """One leaf of the arguments: a tensor with its sizes, or a value that the capture fixed."""

    name: str
    sizes: tuple[int | str, ...] | None  # an int is fixed; equal strings are equal sizes; None: the leaf is no tensor
    value: Any = None


@dataclass(frozen=True)
class Calling:
    """The calling convention of a captured model: its arguments and results, flattened."""

    arguments: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    result: pytree.TreeSpec
    guards: tuple[str, ...] = ()  # conditions on the arguments `L[name]` under which the graph's branches are taken

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def flatten(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors among the arguments of a call, in the order of the graph's placeholders.

        Args:
            forward: The forward of the original model; its signature names the arguments.

        Raises:
            TypeError: If the call differs from the captured call in more than the values and free sizes of tensors.
        """
        values, spec = pytree.tree_flatten(canonical(forward, args, kwargs))
        if spec != self.arguments:
            names = ", ".join(leaf.name for leaf in self.leaves)
            captured, called = (
                list(by_path(pytree.tree_unflatten([0] * s.num_leaves, s))) for s in (self.arguments, spec)
            )
            if captured != called and set(captured) == set(called):
                raise TypeError(
                    f"the keys of a dict come in another order than in the example, ({names}), and the result of the "
                    "graph may depend on the order: give them in that order"
                )
            raise self._other_argument(forward, args, kwargs)
        symbols: dict[str, int] = {}
        for leaf, value in zip(self.leaves, values, strict=True):
            _check(leaf, value, symbols)
        if self.guards:
            named = by_name(forward, args, kwargs)
            for guard in self.guards:
                if not eval(_compiled(guard), {"L": named}):
                    raise TypeError(
                        f"the model takes another branch where not {guard.replace('L[', '[')}, and the graph holds "
                        "for the example's only; rewrite the model with an example like this call"
                    )
        return [value for leaf, value in zip(self.leaves, values, strict=True) if leaf.sizes is not None]

    def _other_argument(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TypeError:
        """The error that names the first argument of a call with another structure than the captured one."""
        defaults = {name: p.default for name, p in inspect.signature(forward).parameters.items()}
        captured_args, captured_kwargs = pytree.tree_unflatten(list(self.leaves), self.arguments)
        captured = by_name(forward, captured_args, captured_kwargs)
        called = by_name(forward, *canonical(forward, args, kwargs))
        for name in dict.fromkeys([*defaults, *captured, *called]):
            was, now = (named.get(name, defaults.get(name, inspect.Parameter.empty)) for named in (captured, called))
            both = name in captured and name in called
            if (both and pytree.tree_structure(was) != pytree.tree_structure(now)) or (
                not both and (name in captured or name in called) and not same_value(now, was)
            ):
                return _other_argument(name, was, now)
        names = ", ".join(leaf.name for leaf in self.leaves)
        return TypeError(f"the graph was captured for the arguments ({names}): transform the model with such a call")

    def unflatten(self, results: Sequence[Any]) -> Any:
        return pytree.tree_unflatten(list(results), self.result)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calling":
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return Calling.from_text, (self.to_text(),)

    def to_text(self) -> dict[str, Any]:
        """The convention as plain literals.

        Raises:
            SourceError: If an argument or the result is of a kind that has no text form.
        """
        try:
            specs = pytree.treespec_dumps(self.arguments), pytree.treespec_dumps(self.result)
            leaves = [(leaf.name, leaf.sizes, repr(leaf.value)) for leaf in self.leaves]
            for _, _, value in leaves:
                ast.literal_eval(value)
        except (ValueError, SyntaxError, NotImplementedError, TypeError) as error:
            raise SourceError(f"cannot write the model's calling convention: {error}") from None
        return {"arguments": specs[0], "leaves": leaves, "result": specs[1], "guards": self.guards}

    @classmethod
    def from_text(cls, text: Mapping[str, Any]) -> "Calling":
        leaves = tuple(Leaf(name, sizes, ast.literal_eval(value)) for name, sizes, value in text["leaves"])
        arguments, result = (pytree.treespec_loads(text[name]) for name in ("arguments", "result"))
        return cls(arguments, leaves, result, tuple(text["guards"]))


def _other_argument(name: str, was: Any, now: Any) -> TypeError:
    """The error for an argument that was a `Leaf`, or a structure with leaves, and is `now` another."""
    value = was.value if isinstance(was, Leaf) else was
    text = "a tensor" if isinstance(was, Leaf) and was.sizes is not None else shown(value)
    return other_argument(name, text, now, was_float=isinstance(value, float))


@cache
def _compiled(guard: str) -> CodeType:
    return compile(guard, _loader.cache(guard, {}), "eval")  # under a name by which tracebacks show it


def _check(leaf: Leaf, value: Any, symbols: dict[str, int]) -> None:
    """Raise a TypeError if `value` is not like the captured leaf.

    Args:
        symbols: The sizes that the symbols of the call stand for; new ones are added.
    """
    advice = "rewrite the model with an example like it"
    if not isinstance(value, Tensor) or leaf.sizes is None:
        if leaf.sizes is not None or not same_value(value, leaf.value):
            raise _other_argument(leaf.name, leaf, value)
        return
    if value.dim() != len(leaf.sizes):
        raise TypeError(f"argument {leaf.name!r} was a tensor of {len(leaf.sizes)} axes; {advice}")
    for axis, (size, captured) in enumerate(zip(value.shape, leaf.sizes, strict=True)):
        expected = symbols.setdefault(captured, size) if isinstance(captured, str) else captured
        if size != expected:
            why = "as another argument has it" if isinstance(captured, str) else "which the capture had to fix"
            raise TypeError(
                f"argument {leaf.name!r} has size {size} along axis {axis}, not {expected}, {why}; {advice}"
            )


@dataclass(frozen=True)
class FlatCapture(Captured):
    """The facts about a model that was captured by torch.export, which the graph does not hold.

    Attributes:
        calling: The calling convention: from the model's arguments to the graph's tensors, and back for the result.
        modes: Whether a module was captured in train mode, by name; a module without an entry was.
        watched: Name, module and captured mode of submodules: the graph holds for these modes alone.
        autocast: The graph enters autocast blocks.
    """

    calling: Calling | None = None
    modes: Mapping[str, bool] = field(default_factory=dict)
    watched: tuple[tuple[str, nn.Module, bool], ...] = ()
    autocast: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: fx.Graph,
        calling: Calling,
        modes: Mapping[str, bool],
        reads: Sequence[Read] | None = None,
    ) -> "FlatCapture":
        """The facts about `model`; the other arguments are attributes of the class, or determine them.

        Args:
            reads: What the model's code read, modes included; None: not known, so that every mode is watched.
        """
        read_modes = None if reads is None else {read.module for read in reads if read.is_mode}
        watched = tuple(
            (name, module, modes.get(name, True))
            for name, module in model.named_modules()
            if name and (read_modes is None or name in read_modes)
        )
        autocast = any(node.target is torch.amp.autocast_mode._enter_autocast for node in graph.nodes)
        values = Reads([read for read in reads or () if not read.is_mode])
        return cls(model, reads=values, calling=calling, modes=dict(modes), watched=watched, autocast=autocast)


class FlatModule(DecoupledModule):
    """Has the arguments and results of the model, and runs a flat graph. In eval mode it runs the original model."""

    dni_captured: FlatCapture = FlatCapture()
    dni_runs_graph_in_eval = False
    dni_keeps_key_order = True
    dni_run_graph: Callable[..., Any]  # forward as fx writes it, from the graph's tensors to its results

    @property
    def dni_calling(self) -> Calling:
        """The calling convention of the graph."""
        assert self.dni_captured.calling is not None
        return self.dni_captured.calling

    def recompile(self) -> PythonCode:
        code = super().recompile()
        cls: Any = type(self)
        cls.dni_run_graph = cls.forward
        self.dni_set_forward(_forward)
        return code

    def dni_settings(self) -> dict[str, Any]:
        read = sorted({str(n.target) for n in self.graph.nodes if n.op == "get_attr"})
        constants = [name for name in read if not name.startswith("dni.") and not has_path(self.dni_original, name)]
        for name in constants:
            if name not in self._buffers:
                raise SourceError(f"the graph holds {name}, which cannot be written as source: train it without saving")
        captured = self.dni_captured
        settings = {"dni_calling": self.dni_calling.to_text(), "dni_modes": dict(captured.modes)}
        watched = tuple(name for name, _, _ in captured.watched)
        return super().dni_settings() | settings | {"dni_constants": tuple(constants), "dni_watched": watched}

    def dni_apply_settings(self, settings: Mapping[str, Any]) -> None:
        calling = Calling.from_text(settings["dni_calling"])
        watched = [Read(name, MODE, "") for name in settings["dni_watched"]] if "dni_watched" in settings else None
        super().dni_apply_settings(settings)
        reads = None if watched is None else [*self.dni_captured.reads, *watched]
        self.dni_captured = FlatCapture.of(self.dni_original, self.graph, calling, settings["dni_modes"], reads)

    def dni_values_for(self, inputs: Inputs) -> list[Any]:
        return list(self.dni_calling.flatten(self.dni_original.forward, inputs.args, inputs.kwargs))

    def dni_state_paths(self, arguments: Mapping[str, Any]) -> dict[str, list[tuple[str, Path]]]:
        placeholders = iter([node.name for node in self.graph.nodes if node.op == "placeholder"])
        return {
            name: [(next(placeholders), ()) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            for name, value in arguments.items()
        }

    def dni_result(self, inputs: Inputs) -> Result:
        structure, values = result_of_graph(self.graph)
        return Result(self.dni_calling.unflatten(structure), values)


def _forward(self: FlatModule, *args: Any, **kwargs: Any) -> Any:
    """`FlatModule.forward`. It is assigned in `recompile`, since fx writes a new forward for every graph."""
    ops.check_not_symbolic(args)
    context = {"dni_context": kwargs.pop("dni_context")} if "dni_context" in kwargs else {}
    if not self.training:
        return call_original(self, *args, **kwargs)
    captured = self.dni_captured
    for name, module, training in captured.watched:
        if module.training != training:
            mode = "train" if module.training else "eval"
            raise DniFxError(
                f"{name} is in {mode} mode, but was captured in the other, which the front end export fixes: let the "
                'model\'s own train() set it, or use frontend="modules"'
            )
    tensors = self.dni_calling.flatten(self.dni_original.forward, args, kwargs)
    with _autocast_restored() if captured.autocast else contextlib.nullcontext():
        return self.dni_calling.unflatten(self.dni_run_graph(*tensors, **context))


@contextlib.contextmanager
def _autocast_restored() -> Iterator[None]:
    """Restore the state of autocast after an error between the two nodes that enter and leave an autocast block."""
    devices = ("cpu", "cuda")
    states = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    try:
        yield
    except BaseException:
        current = torch.autocast_increment_nesting()
        while current >= depth:
            current = torch.autocast_decrement_nesting()
        for device, (enabled, dtype) in zip(devices, states, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        raise
