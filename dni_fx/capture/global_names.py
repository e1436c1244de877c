"""Find the global variables that a function reads, in its byte code."""

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

__all__ = ["attribute_names", "read_globals"]

_Step = tuple[str, Any]
_KNOWN = frozenset({"torch", "numpy", "dni_fx", *sys.stdlib_module_names})  # their constants do not change


def attribute_names(function: Callable[..., Any]) -> set[str]:
    """The names of all attributes and global variables in the code of a function, and of functions defined in it."""
    return {name for code in _codes(function) for name in code.co_names}


def read_globals(function: Callable[..., Any]) -> Iterator[tuple[tuple[_Step, ...], Any]]:
    """Steps and value of each global variable that a function reads, or a function of the same file that it calls.

    If the variable is a dict or a file, the steps go on to the entry that the code reads, as in `HP["tau"]`.
    """
    waiting: list[Any] = [inspect.unwrap(function)]
    seen: set[CodeType] = set()
    while waiting:
        current = waiting.pop()
        names = getattr(current, "__globals__", {})
        for code in _codes(current):
            if code in seen:
                continue
            seen.add(code)
            for chain in _chains(code):
                steps, value = _follow(names, chain)
                if isinstance(value, FunctionType) and value.__globals__ is names:
                    waiting.append(value)
                elif not (callable(value) or isinstance(value, ModuleType)):
                    yield (("global", names["__name__"]), *steps), value


def _codes(function: Callable[..., Any]) -> Iterator[CodeType]:
    waiting = [getattr(inspect.unwrap(function), "__code__", None)]
    while waiting:
        code = waiting.pop()
        if code is not None:
            yield code
            waiting += [const for const in code.co_consts if isinstance(const, CodeType)]


def _chains(code: CodeType) -> Iterator[list[_Step]]:
    """For each read of a global variable: the variable, and the attributes and constant keys read from it directly."""
    chain: list[_Step] = []
    key: list[Any] = []
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in ("CACHE", "PRECALL", "EXTENDED_ARG"):
            continue
        if chain and name == "LOAD_ATTR" and not key:
            chain.append(("attribute", instruction.argval))
        elif chain and name == "LOAD_CONST" and not key:
            key = [instruction.argval]
        elif key and (name == "BINARY_SUBSCR" or instruction.argrepr == "[]"):
            chain.append(("item", key.pop()))
        else:
            if chain:
                yield chain
            chain, key = [("item", instruction.argval)] if name in ("LOAD_GLOBAL", "LOAD_NAME") else [], []
    if chain:
        yield chain


def _follow(names: dict[str, Any], chain: list[_Step]) -> tuple[tuple[_Step, ...], Any]:
    """The steps of a chain through dicts and files, and the value at their end; a callable if no value can change."""
    value: Any = names
    for index, (kind, key) in enumerate(chain):
        if isinstance(value, ModuleType) and value.__name__.split(".")[0] in _KNOWN:
            return (), len
        try:
            if kind == "item" and isinstance(value, dict):
                value = value[key]
            elif kind == "attribute" and isinstance(value, ModuleType | SimpleNamespace):
                value = getattr(value, key)
            else:
                return tuple(chain[:index]), value
        except (LookupError, AttributeError, TypeError):
            return (), len
    return tuple(chain), value
