"""Plain Python values that a model's code reads while it is captured, and that a graph therefore fixes."""

import ast
import copy
import functools
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from dni_fx.model.attributes import at_path, has_path

__all__ = ["MODE", "Read", "Reads", "text_of", "value_of"]

_MISSING = object()
_MOST = 10_000  # the most values in one attribute: the comparison of more would be slow
_LONGEST = 200  # characters of a text; of a longer text, the start and a checksum
_Step = tuple[str, Any]
MODE: tuple[_Step, ...] = (("attribute", "training"),)


@dataclass(frozen=True)
class Read:
    """One value that the model's code read.

    Attributes:
        module: The dotted name of the submodule that has the value; "" for the model itself.
        steps: The way from the module to the value: ("attribute", name), ("item", key), or first ("global", file).
        text: The value as text; "" if there was none.
    """

    module: str
    steps: tuple[_Step, ...]
    text: str

    def __str__(self) -> str:
        """The name of the value as in Python code, such as `block.cfg.tau` or `hp['tau']`."""
        if self.is_global:
            (_, file), (_, variable), *rest = self.steps
            return f"{_name(variable, rest)} (a global variable of {file})"
        return _name(self.module, self.steps)

    @property
    def is_global(self) -> bool:
        """Whether the value is a global variable of a file, not an attribute of the model."""
        return self.steps[0][0] == "global"

    @property
    def has_text_form(self) -> bool:
        """Whether a saved folder can hold the read, and the read means the same in another process."""
        try:
            return not self.is_global and ast.literal_eval(repr(self.steps)) == self.steps
        except (ValueError, SyntaxError):
            return False

    @property
    def is_mode(self) -> bool:
        """Whether the value is the mode of a module: train or eval."""
        return self.steps == MODE


def _name(name: str, steps: Sequence[_Step]) -> str:
    for kind, key in steps:
        name += f"[{key!r}]" if kind == "item" else f".{key}"
    return name.lstrip(".")


def text_of(value: object) -> str | None:
    """A plain value as text, equal for equal values; None for any other value."""
    text = _text(value, [_MOST])
    return text if text is None or len(text) <= _LONGEST else f"{text[:80]}... ({zlib.crc32(text.encode()):08x})"


def _text(value: Any, left: list[int]) -> str | None:
    left[0] -= 1
    if left[0] < 0:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        is_data = value.dtype.hasobject or value.size > _MOST
        return None if is_data else f"array({value.tolist()}, {value.dtype})"
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, functools.partial):
        parts = [_text(part, left) for part in (value.func, value.args, value.keywords)]
        return None if None in parts else f"partial({', '.join(map(str, parts))})"
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        code = getattr(value, "__code__", None)
        # A name does not tell one lambda from another: its line, its names and its constants do.
        is_lambda = code is not None and "<lambda>" in value.__qualname__
        own = f":{code.co_firstlineno} {_content(code)}" if is_lambda and code is not None else ""
        return f"{value.__module__}.{value.__qualname__}{own}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | slice | range):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, dict):
        pairs = [(_text(k, left), _text(v, left)) for k, v in dict.items(value)]
        return None if any(None in pair for pair in pairs) else f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
    if isinstance(value, list | tuple | set | frozenset):
        texts = [_text(v, left) for v in value]
        if None in texts:
            return None
        known = [text for text in texts if text is not None]
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(known))}}}"
        return f"[{', '.join(known)}]" if isinstance(value, list) else f"({', '.join(known)},)"
    return None


def _content(code: CodeType) -> tuple[Any, ...]:
    """The names and plain constants in the code of a function."""
    return *code.co_names, *[const for const in code.co_consts if not isinstance(const, CodeType)]


def _same(old: str, new: str) -> bool:
    """Whether two texts are of equal values: 1 equals 1.0."""
    try:
        return old == new or bool(ast.literal_eval(old) == ast.literal_eval(new))
    except (ValueError, SyntaxError):
        return False


def _next(owner: Any, step: _Step) -> Any:
    kind, key = step
    try:
        if kind == "global":
            return vars(sys.modules[key])
        return owner[key] if kind == "item" else getattr(owner, key)
    except (AttributeError, LookupError, TypeError):
        return _MISSING


def value_of(model: nn.Module, read: Read) -> tuple[Any, str | None]:
    """The present value of a read, and its text: "" if there is no value, None if the value is not plain."""
    try:
        value: Any = at_path(model, read.module)
    except AttributeError:
        return None, ""
    for step in read.steps:
        value = _next(value, step)
        if value is _MISSING:
            return None, ""
    return value, text_of(value)


class Reads(Sequence[Read]):
    """The reads of a capture, with a fast comparison to the present values.

    Between two calls most values are the same objects, so `changed` compares the objects that it saw last.

    Attributes:
        scalars: Module, name and value of attributes that torch.compile can guard; empty until the first comparison.
    """

    def __init__(self, reads: Sequence[Read] = ()) -> None:
        self._reads = tuple(reads)
        self.scalars: list[tuple[nn.Module, str, Any]] = []
        self._seen: _Seen | None = None

    def __getitem__(self, index: Any) -> Any:
        return self._reads[index]

    def __len__(self) -> int:
        return len(self._reads)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reads":
        return Reads(self._reads)  # without the objects of the model that was copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Reads, (self._reads,)

    def changed(self, model: nn.Module, *, complete: bool = True) -> tuple[Read, str] | None:
        """The first read whose value has changed, and the text of the value now; None if no value has.

        Args:
            complete: `model` has all values; else a value that is missing has not changed.
        """
        if self._seen is not None and self._seen.holds(model):
            return None
        for read in self._reads:
            value, text = value_of(model, read)
            if text == "" and (read.is_global or not complete):
                continue
            if text is None or not _same(read.text, text):
                return read, _shown(value) if text is None else text
        self._seen = _Seen(model, self._reads)
        self.scalars = [
            (at_path(model, read.module), read.steps[0][1], value)
            for read in self._reads
            if len(read.steps) == 1 and isinstance(value := value_of(model, read)[0], bool | int | float | str)
        ]
        return None


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__}"


class _Seen:
    """The values of all reads, and the objects on the ways to them, as they were when last compared."""

    def __init__(self, model: nn.Module, reads: Sequence[Read]) -> None:
        self.model = model
        self.copies: list[tuple[Any, Any]] = []  # of lists, dicts and arrays, which may change in place
        objects: dict[tuple[int, Any], tuple[Any, _Step, Any]] = {}  # owner, step, and the object there
        self.absent: list[tuple[Mapping[Any, Any], Any]] = []  # a namespace, and a name that it has not
        plain: dict[int, tuple[Mapping[Any, Any], dict[Any, Any]]] = {}  # a namespace, and its values that were read
        for read in reads:
            owner: Any = at_path(model, read.module) if has_path(model, read.module) else _MISSING
            for step in read.steps:
                value = _next(owner, step)
                names = _names(owner, step)
                if step is read.steps[-1] and names is not None and value is not _MISSING:
                    plain.setdefault(id(names), (names, {}))[1][step[1]] = value
                elif names is not None and value is _MISSING:
                    self.absent.append((names, step[1]))
                    break
                else:
                    objects[id(owner), step] = owner, step, value
                owner = value
            else:
                if isinstance(owner, list | dict | set | np.ndarray):
                    self.copies.append((owner, copy.deepcopy(owner)))
        self.objects = list(objects.values())
        # Each first name twice: of one name, itemgetter would return the value, which may be an array, not a tuple.
        getters = [(names, itemgetter(next(iter(held)), *held), held) for names, held in plain.values()]
        self.plain = [(names, get, get(held)) for names, get, held in getters]

    def holds(self, model: nn.Module) -> bool:
        """Whether each object is still in its place, each value equal, and each list or dict of equal content."""
        if model is not self.model:
            return False
        try:
            for names, get, values in self.plain:
                if get(names) != values:
                    return False
        except (LookupError, ValueError, RuntimeError, TypeError):  # a value is gone, or is an array now
            return False
        if any(name in names for names, name in self.absent):
            return False
        for owner, step, value in self.objects:
            if _next(owner, step) is not value:
                return False
        return all(
            np.array_equal(value, content) if isinstance(value, np.ndarray) else value == content
            for value, content in self.copies
        )


def _names(owner: Any, step: _Step) -> Mapping[Any, Any] | None:
    """The namespace in which a step looks first: a dict, or the attributes of an object; None if there is none."""
    kind, key = step
    if kind == "item":
        return owner if isinstance(owner, dict) else None
    names: dict[str, Any] | None = getattr(owner, "__dict__", None)
    return names if kind == "attribute" and names is not None and (key in names or not hasattr(owner, key)) else None
