"""Where the context of the synthesizers comes from, if the calls of the net give no `dni_context`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dni_fx.errors import DniFxError, described
from dni_fx.model import by_name

__all__ = ["ContextSource", "check_source", "find_source"]


@dataclass(frozen=True)
class ContextSource:
    """An argument of the model, or an entry of an argument that is a dict.

    Attributes:
        argument: The name of the argument.
        place: Its place among the arguments by position; None: it is given by name.
        key: Of the dict; empty: the argument itself is the context.
    """

    argument: str
    place: int | None = None
    key: str = ""

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The context of a call; None: the call gives none."""
        value = kwargs.get(self.argument)
        if value is None and self.place is not None and self.place < len(args):
            value = args[self.place]
        if self.key:
            return value.get(self.key) if isinstance(value, Mapping) else None
        return value


def find_source(path: str, forward: Callable[..., Any]) -> ContextSource:
    """The source with a path, "argument" or "argument.key", in the calls of a function."""
    argument, _, key = path.partition(".")
    parameters = inspect.signature(forward).parameters.values()
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return ContextSource(argument, by_place.index(argument) if argument in by_place else None, key)


def check_source(name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The path of the argument, or of the entry of a dict among the arguments, that has this name.

    Raises:
        DniFxError: If there is none.
    """
    given = by_name(forward, args, kwargs)
    if name in {*given, *inspect.signature(forward).parameters}:
        return name
    for argument, value in given.items():
        if isinstance(value, Mapping) and name in (*value, *(f"{argument}.{key}" for key in value)):
            return f"{argument}.{name.removeprefix(f'{argument}.')}"
    raise DniFxError(
        f"context_from={described(name)}: forward has no such argument, and no dict among the arguments of the example "
        f"has such a key; there are {', '.join(given)}"
    )
