"""Plain Python values that a model's code reads while it is captured, and that a graph therefore fixes."""

import ast
import functools
import zlib
from array import array
from collections import UserDict, UserList, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from dni_fx.model.attributes import at_path
from dni_fx.model.seen import ABSENT, Seen, Step, value_at

__all__ = ["MODE", "Read", "Reads", "text_of", "value_of"]

_MOST = 10_000  # the most values in one attribute: the comparison of more would be slow
_LONGEST = 200  # characters of a text; of a longer text, the start and a checksum
_STRUCTURE = frozenset({"children", "hooks"})
_OF_A_PROCESS = frozenset(
    {"global", "code", "cell"}
)  # steps to functions: a script and its importer name them otherwise
MODE: tuple[Step, ...] = (("attribute", "training"),)


@dataclass(frozen=True)
class Read:
    """One value that the model's code read.

    Attributes:
        module: The dotted name of the submodule that has the value; "" for the model itself.
        steps: The way from the module to the value: each a `Step`, of which ("global", file) can be the first alone.
        text: The value as text; "" if there was none.
    """

    module: str
    steps: tuple[Step, ...]
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
            is_free = _OF_A_PROCESS.isdisjoint(kind for kind, _ in self.steps)
            return is_free and ast.literal_eval(repr(self.steps)) == self.steps
        except (ValueError, SyntaxError):
            return False

    @property
    def is_structure(self) -> bool:
        """Whether the value is the children or hooks of a module."""
        return self.steps[-1][0] in _STRUCTURE

    @property
    def is_mode(self) -> bool:
        """Whether the value is the mode of a module: train or eval."""
        return self.steps == MODE


def _name(name: str, steps: Sequence[Step]) -> str:
    for kind, key in steps:
        if kind in ("length", *_STRUCTURE):
            return f"the {'length' if kind == 'length' else f'list of {kind}'} of {name.lstrip('.') or 'the model'}"
        if kind == "cell":
            name = f"{key} in the closure of {name.lstrip('.')}"
        else:
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
    if isinstance(value, UserDict | UserList):
        value = value.data
    if isinstance(value, deque | array):
        value = list(value)
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


def value_of(model: nn.Module, read: Read) -> tuple[Any, str | None]:
    """The present value of a read, and its text: "" if there is no value, None if the value is not plain."""
    try:
        value: Any = at_path(model, read.module)
    except AttributeError:
        return None, ""
    for step in read.steps:
        value = value_at(value, step)
        if value is ABSENT:
            return None, ""
    return value, text_of(value)


class Reads(Sequence[Read]):
    """The reads of a capture, with a fast comparison to the present values.

    Between two calls most values are the same objects, so `changed` compares the objects that it saw last.

    Attributes:
        scalars: Module, name and value of attributes that torch.compile can guard; empty until the first comparison.
    """

    def __init__(self, reads: Sequence[Read] = (), codes: Mapping[Read, CodeType] | None = None) -> None:
        self._reads = tuple(reads)
        self.scalars: list[tuple[nn.Module, str, Any]] = []
        self._codes = codes  # of the functions among the values; None until the first comparison
        self._seen: Seen | None = None

    def __getitem__(self, index: Any) -> Any:
        return self._reads[index]

    def __len__(self) -> int:
        return len(self._reads)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reads":
        return Reads(self._reads, self._codes)  # without the objects of the model that was copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Reads, (self._reads,)

    def changed(self, model: nn.Module, *, complete: bool = True) -> tuple[Read, str] | None:
        """The first read whose value has changed, and the text of the value now; None if no value has.

        Args:
            complete: `model` has all values; else a value that is missing has not changed.
        """
        if self._seen is not None and self._seen.holds(model):
            return None
        codes: dict[Read, CodeType] = {}
        for read in self._reads:
            if not complete and read.is_structure:
                continue
            value, text = value_of(model, read)
            if text == "" and (read.is_global or not complete):
                continue
            if text is None or not _same(read.text, text):
                return read, _shown(value) if text is None else text
            if isinstance(value, FunctionType):
                codes[read] = value.__code__
                if self._codes is not None and self._codes.get(read, value.__code__) != value.__code__:
                    return read, f"another function {text}"
        self._codes = codes if self._codes is None else self._codes
        self._seen = Seen(model, [(read.module, read.steps) for read in self._reads])
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
