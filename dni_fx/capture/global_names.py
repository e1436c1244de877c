"""Find the values that a function reads from outside: global variables, in its byte code, closures and defaults."""

import contextlib
import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

__all__ = ["attribute_names", "is_own", "read_by_function"]

_Step = tuple[str, Any]
_KNOWN = frozenset({"torch", "numpy", "dni_fx", *sys.stdlib_module_names})  # their constants do not change


def attribute_names(function: Callable[..., Any]) -> set[str]:
    """The names of all attributes and global variables in the code of a function, and of functions defined in it."""
    return {name for code in _codes(function) for name in code.co_names}


def read_by_function(function: Callable[..., Any], way: tuple[_Step, ...]) -> Iterator[tuple[tuple[_Step, ...], Any]]:
    """Steps and value of each value that a function, or a function of the person that it calls, has from outside.

    They are global variables, variables in closures, default arguments and the functions that it calls. If a variable
    is a dict, a file or a class, the steps go on to the entry that the code reads, as in `HP["tau"]`.

    Args:
        way: The steps to the function.
    """
    waiting: list[tuple[tuple[_Step, ...], Any]] = [(way, function)]
    seen: set[Any] = set()
    while waiting:
        at, current = waiting.pop()
        current = getattr(current, "__func__", current)
        if id(current) in seen or not is_own(current):
            continue
        seen.add(id(current))
        for steps, value in _values(at, current):
            if isinstance(value, FunctionType | MethodType | functools.partial):
                waiting.append((steps, value))
            is_helper = isinstance(value, FunctionType) and is_own(value)
            if is_helper or not (callable(value) or isinstance(value, ModuleType)):
                yield steps, value


def is_own(function: object) -> bool:
    """Whether a function is in the person's code, not of Python or of a package."""
    if isinstance(function, functools.partial):
        return True
    code = getattr(function, "__code__", None)
    name = str(getattr(function, "__module__", None)).split(".")[0]
    return code is not None and name not in _KNOWN


def _values(at: tuple[_Step, ...], function: Any) -> Iterator[tuple[tuple[_Step, ...], Any]]:
    """Steps and value of what one function has from outside."""
    if isinstance(function, functools.partial):
        yield (*at, ("attribute", "func")), function.func
        return
    for name in ("__defaults__", "__kwdefaults__", "__wrapped__"):
        value = getattr(function, name, None)
        if value is not None:
            yield (*at, ("attribute", name)), value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell without a value
            yield (*at, ("cell", name)), cell.cell_contents
    names = function.__globals__
    file = str(names.get("__name__"))
    if vars(sys.modules.get(file, contextlib)) is not names:  # generated code is in no file
        return
    for chain in (chain for code in _own_codes(function) for chain in _chains(code)):
        steps, value = _follow(names, chain)
        followed = isinstance(value, FunctionType) and value.__globals__ is not names
        if not (followed and _of_a_package(value)):
            yield (("global", file), *steps), value


def _of_a_package(function: FunctionType) -> bool:
    """Whether a function is of an installed package, of which not all that it calls is looked at."""
    return bool({"site-packages", "dist-packages"} & {*Path(function.__code__.co_filename).parts})


def _codes(function: Callable[..., Any]) -> Iterator[CodeType]:
    return _own_codes(inspect.unwrap(function))


def _own_codes(function: Callable[..., Any]) -> Iterator[CodeType]:
    """The code of a function, and of functions defined in it."""
    waiting = [getattr(function, "__code__", None)]
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
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__ if isinstance(value, type) else ""
        if name.split(".")[0] in _KNOWN:
            return (), len
        try:
            if kind == "item" and isinstance(value, dict):
                value = value[key]
            elif kind == "attribute" and isinstance(value, ModuleType | SimpleNamespace | type):
                value = getattr(value, key)
            else:
                return tuple(chain[:index]), value
        except (LookupError, AttributeError, TypeError):
            return (), len
    return tuple(chain), value
