"""The calling convention of an exported graph: nested arguments to flat tensors, and back."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx.errors import SourceError
from dni_fx.model import by_name, by_path, canonical

__all__ = ["Calling", "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """One leaf of the arguments: a tensor with its sizes, or a value that the capture fixed."""

    name: str
    sizes: tuple[int | str, ...] | None  # a number is fixed; equal letters are equal sizes; None: no tensor
    value: Any = None


@dataclass(frozen=True)
class Calling:
    """The calling convention of a captured model: what it takes and gives, flattened."""

    arguments: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    result: pytree.TreeSpec
    guards: tuple[str, ...] = ()  # conditions on the arguments `L[name]` that a branch of the model took for granted

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def flatten(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in the order of the graph's placeholders.

        Args:
            forward: The model's own, whose signature says which argument is which.

        Raises:
            TypeError: If the call differs from the captured one in more than values and free sizes of tensors.
        """
        values, spec = pytree.tree_flatten(canonical(forward, args, kwargs))
        if spec != self.arguments:
            wanted = ", ".join(leaf.name for leaf in self.leaves)
            before, now = (list(by_path(pytree.tree_unflatten([0] * s.num_leaves, s))) for s in (self.arguments, spec))
            if before != now and set(before) == set(now):
                raise TypeError(
                    f"the keys of a dict come in another order than in the example, ({wanted}), and what the graph "
                    "gives may depend on it: give them in that order"
                )
            raise TypeError(
                f"the graph was captured for the arguments ({wanted}), given in that form; rewrite the model with "
                "example inputs like those of this call"
            )
        known: dict[str, int] = {}
        for leaf, value in zip(self.leaves, values, strict=True):
            _check(leaf, value, known)
        if self.guards:
            named = by_name(forward, args, kwargs)
            for guard in self.guards:
                if not eval(_compiled(guard), {"L": named}):
                    raise TypeError(
                        f"the model takes another branch where not {guard.replace('L[', '[')}, and the graph holds "
                        "for the example's only; rewrite the model with an example like this call"
                    )
        return [value for leaf, value in zip(self.leaves, values, strict=True) if leaf.sizes is not None]

    def unflatten(self, results: Sequence[Any]) -> Any:
        return pytree.tree_unflatten(list(results), self.result)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calling":
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[Any, ...]:
        return Calling.from_text, (self.to_text(),)

    def to_text(self) -> dict[str, Any]:
        """Plain literals.

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


@cache
def _compiled(guard: str) -> CodeType:
    return compile(guard, "<guard>", "eval")


def _check(leaf: Leaf, value: Any, known: dict[str, int]) -> None:
    advice = "rewrite the model with an example like it"
    if leaf.sizes is None:
        if isinstance(value, Tensor) or value != leaf.value:
            raise TypeError(f"argument {leaf.name!r} was {leaf.value!r} when the model was captured; {advice}")
        return
    if not isinstance(value, Tensor) or value.dim() != len(leaf.sizes):
        raise TypeError(f"argument {leaf.name!r} was a tensor of {len(leaf.sizes)} axes; {advice}")
    for axis, (size, wanted) in enumerate(zip(value.shape, leaf.sizes, strict=True)):
        expected = known.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != expected:
            why = "as another argument has it" if isinstance(wanted, str) else "which the capture had to fix"
            raise TypeError(
                f"argument {leaf.name!r} has size {size} along axis {axis}, not {expected}, {why}; {advice}"
            )
