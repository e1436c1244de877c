"""Find the model that a TARGET names: path/to/model.py, path/to/model.py:attr or package.module:attr."""

import contextlib
import difflib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dni_fx.errors import OURS, DniFxError, TargetError, first_line
from dni_fx.model.inputs import Inputs, to_inputs
from dni_fx.paths import as_path, is_file, kind_of

__all__ = ["errors_of", "load_attribute", "load_target"]

_NAMES = ("model", "build_model")

_LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def load_target(
    target: str, making: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[nn.Module, Inputs | None]:
    """The model that `target` names, and the example inputs beside it.

    Output that the user's code prints goes to stderr: stdout is for the result.

    Args:
        making: Where to make a model that a class or function makes, such as a FakeTensorMode; if that raises an
            error, the model is made outside of it.

    Raises:
        DniFxError: If there is no such file or attribute, or the file does not define exactly one model.
        TargetError: If the user's code raises an error.
    """
    where, _, attr = target.partition(":") if not target.endswith(".py") else (target, "", "")
    with contextlib.redirect_stdout(sys.stderr):
        module = _import_file(as_path(where, "TARGET")) if where.endswith(".py") else _import_module(where, attr)
        with errors_of(target):  # a module or class may compute its attributes
            found = _lookup(module, attr, target) if attr else _discover(module, where)
        try:
            with contextlib.nullcontext() if making is None else making:
                model = _build(found, target)
        except TargetError:
            if making is None:
                raise
            model = _build(found, target)
        return model, _example_inputs(module, target)


def load_attribute(target: str) -> Any:
    """What `path/to/file.py:NAME` or `package.module:NAME` names; a file that is loaded already is not loaded again.

    Raises:
        DniFxError: If there is no such file or attribute.
        TargetError: If the user's code raises an error.
    """
    where, _, attr = target.rpartition(":")
    if not where:
        raise DniFxError(f"{target}: name what is in the file, as in {target}:batches")
    with contextlib.redirect_stdout(sys.stderr):
        loaded = sys.modules.get(f"dni_fx_target_{Path(where).stem}")
        if loaded is None or loaded.__file__ != str(Path(where).resolve()):
            loaded = _import_file(as_path(where)) if where.endswith(".py") else _import_module(where, attr)
        with errors_of(target):
            return _lookup(loaded, attr, target)


def _import_file(path: Path) -> ModuleType:
    if not is_file(path):
        raise DniFxError(f"no such file: {path}{' (this is a folder)' if kind_of(path) == 'folder' else ''}")
    path = path.resolve()
    root, name = path.parent, path.stem
    while (root / "__init__.py").exists():  # a file inside a package: import it as the package's module
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    with errors_of(path.name):
        if "." in name:
            return importlib.import_module(name)
        # A unique module name: the file may have the name of an installed package.
        unique = f"dni_fx_target_{name}"
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
        return module


def _import_module(name: str, attr: str) -> ModuleType:
    if not attr:
        kind = kind_of(as_path(name, "TARGET"))
        lacks_suffix = is_file(as_path(f"{name}.py"))
        if kind == "nothing" and not lacks_suffix:
            raise DniFxError(
                f"no such file or folder: {name}; a TARGET is path/to/model.py[:attr] or package.module:attr"
            )
        hint = "is the suffix .py missing?" if lacks_suffix else f"this is a {kind}"
        raise DniFxError(f"{name!r} is neither a .py file nor package.module:attr ({hint})")
    if not all(part.isidentifier() for part in name.split(".")):
        raise DniFxError(
            f"{f'{name}:{attr}'!r} names no module; a TARGET is path/to/model.py[:attr] or package.module:attr"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    with errors_of(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise DniFxError(f"no module named {error.name!r}") from None


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Turn an error in the user's code into a `TargetError` of one line with the place; `name` if there is no line."""
    try:
        yield
    except (DniFxError, KeyboardInterrupt, GeneratorExit):
        raise
    except SyntaxError as error:
        if error.lineno is None or "'utf-8' codec" in error.msg:
            raise DniFxError(f"{name} is no Python source: {first_line(error)}") from None
        raise TargetError(f"{Path(error.filename or name).name}:{error.lineno}: {error.msg}") from None
    except BaseException as error:  # user code may raise any error; a script may exit at import, which is SystemExit
        place = _place(error) or name
        message = str(error).strip().split("\n")[0]
        raise TargetError(f"{place}: {type(error).__name__}{': ' if message else ''}{message}") from None


def _place(error: BaseException) -> str:
    """The innermost line of the traceback that is in the user's code, or else in a library."""
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = [f for f in frames if not f.filename.startswith(("<", OURS))]
    frames = [f for f in frames if not f.filename.startswith(_LIBRARIES)] or frames
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _lookup(module: ModuleType, attr: str, target: str) -> Any:
    value: Any = module
    for part in attr.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, [n for n in dir(value) if not n.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DniFxError(f"{target}: no attribute {part!r}{hint}")
        value = getattr(value, part)
    return value


def _discover(module: ModuleType, where: str) -> Any:
    for name in _NAMES:
        if hasattr(module, name):
            return getattr(module, name)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    without_arguments = [c for c in classes if _needs_no_arguments(c)]
    if len(without_arguments) == 1:
        return without_arguments[0]
    instances = [k for k, v in vars(module).items() if isinstance(v, nn.Module)]
    found = [c.__name__ for c in without_arguments or classes] + instances
    if not found:
        raise DniFxError(f"{where} holds no model: define `model`, `build_model()` or one nn.Module class")
    if not without_arguments and not instances:
        raise DniFxError(
            f"{where}: {', '.join(found)} cannot be made without arguments: define `build_model()` in the file"
        )
    raise DniFxError(
        f"{where} holds several models: {', '.join(found)}; name one, as in {where}:{found[0]}, or define `model`"
    )


def _needs_no_arguments(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _build(value: Any, target: str) -> nn.Module:
    if not isinstance(value, nn.Module):
        if not callable(value):
            raise DniFxError(
                f"{target}: a {type(value).__name__} is no nn.Module, nor a class or function that makes one"
            )
        if not _needs_no_arguments(value):
            raise DniFxError(f"{target}: {getattr(value, '__name__', value)} cannot be called without arguments")
        with errors_of(target):
            value = value()
    if not isinstance(value, nn.Module):
        raise DniFxError(f"{target}: made a {type(value).__name__}, not an nn.Module")
    return value


def _example_inputs(module: ModuleType, target: str) -> Inputs | None:
    values = []
    for name in ("example_inputs", "example_kwargs"):
        value = getattr(module, name, None)
        with errors_of(target):
            values.append(value() if callable(value) else value)
    if values[0] is None and values[1] is None:
        return None
    if values[1] is not None and not isinstance(values[1], dict):
        raise DniFxError(f"{target}: example_kwargs must be a dict, not a {type(values[1]).__name__}")
    try:
        return to_inputs(values[0], values[1], "example_inputs in the file")
    except DniFxError as error:
        raise DniFxError(f"{target}: {error}") from None
