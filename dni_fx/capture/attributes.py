"""Record the plain Python values that the model's code reads while it is traced.

A graph fixes these values: an attribute such as `self.tau`, an entry of a config, a global variable. During a trace,
`__getattribute__` of `nn.Module` and of the classes of configs records each read; dicts are replaced by copies that do.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any
from unittest import mock

from torch import nn
from torch._dynamo.callback import callback_handler

from dni_fx.capture.global_names import attribute_names, read_globals
from dni_fx.model import Read, tensors_in, text_of, value_of

__all__ = ["recorded_reads"]

_OWN = frozenset(dir(nn.Module())) - {"training"}  # attributes of every module
_LIBRARIES = frozenset({"torch", "numpy", "dni_fx", *sys.stdlib_module_names}) - {"argparse"}
_HEAP_TYPE, _IMMUTABLE = 1 << 9, 1 << 8  # flags of a class: it is made by Python code; its attributes are fixed
_Place = tuple[str, tuple[tuple[str, Any], ...]]  # the attributes `module` and `steps` of a `Read`

_lock = threading.RLock()  # classes are patched, so only one trace runs at a time


@contextlib.contextmanager
def recorded_reads(model: nn.Module) -> Iterator[list[Read]]:
    """A list that, after the context, holds the plain values that the model's code read and did not change."""
    found: list[Read] = []
    with _lock:
        recorder = _Recorder(model)
        try:
            yield found
        finally:
            recorder.close()
    written = recorder.written
    reads = [
        Read(module, steps, text)
        for (module, steps), text in recorder.reads.items()
        if not any((module, steps[:end]) in written for end in range(1, len(steps) + 1))
    ]
    found += [read for read in reads if value_of(model, read)[1] == read.text]  # a cache, for one, changes


class _Recorder:
    """Watches modules and configs until `close`.

    Attributes:
        reads: The text of each value at its first read; "" if there was none.
        written: The attributes that the code assigned. torch.export may set them back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.reads: dict[_Place, str] = {}
        self.written: set[_Place] = set()
        self.model = model
        self.places: dict[int, _Place] = {id(m): (name, ()) for name, m in model.named_modules()}
        self.objects: list[Any] = []  # keeps the objects of `places` alive, so that their ids stay unique
        self.copies: dict[int, tuple[_Place, Any, Any]] = {}  # dicts and namespaces, and their watched copies
        self.code: dict[tuple[int, Any], tuple[nn.Module, Callable[..., Any]]] = {}  # methods that were called
        self.scanned: set[Any] = set()  # functions whose global variables are recorded
        self.patches: dict[type, Any] = {}
        self.is_paused = False
        self._watch(nn.Module)
        callback_handler.register_start_callback(self._pre_compile)
        callback_handler.register_end_callback(self._start)
        self._read_code(model, type(model).forward)

    def close(self) -> None:
        callback_handler.remove_start_callback(self._pre_compile)
        callback_handler.remove_end_callback(self._start)
        self._stop()
        for (module, steps), source, copy in self.copies.values():
            is_dict = isinstance(source, dict)
            content, new = (source, copy.plain()) if is_dict else (vars(source), vars(copy))
            kind = "item" if is_dict else "attribute"
            changed = [k for k in {**content, **new} if k not in new or k not in content or content[k] is not new[k]]
            self.written |= {(module, (*steps, (kind, key))) for key in changed}
            if changed:
                content.clear()
                content.update(new)

    def _pre_compile(self, _args: object) -> None:
        """Stop watching: torch.compile, which traces the branches of torch.cond, takes no patched classes.

        All attributes that the code of a branch may read count as read.
        """
        self._stop()
        for module, function in self.code.values():
            for name in attribute_names(function) & vars(module).keys():
                self._note(module, name, vars(module)[name])

    def _stop(self) -> None:
        for patch in reversed(self.patches.values()):
            if not self.is_paused:
                patch.__exit__(None, None, None)
        self.is_paused = True

    def _start(self, _args: object) -> None:
        for patch in self.patches.values():
            patch.__enter__()
        self.is_paused = False

    def _watch(self, cls: type) -> None:
        """Record reads of the attributes of all instances of a class that have a place."""
        original: Any = cls.__getattribute__

        def getattribute(owner: Any, name: str) -> Any:
            try:
                value = original(owner, name)
            except AttributeError:
                fallback = getattr(type(owner), "__getattr__", None)
                if fallback is None or isinstance(owner, nn.Module):
                    self._note_absent(owner, name)
                    raise
                value = fallback(owner, name)
            return value if name.startswith("__") else self._note(owner, name, value)

        def getitem(owner: Any, key: Any) -> Any:
            value = original_getitem(owner, key)
            place = self.places.get(id(owner))
            return value if place is None else self.keep((place[0], (*place[1], ("item", key))), value)

        def setattribute(owner: Any, name: str, value: Any) -> None:
            place = self.places.get(id(owner))
            if place is not None:
                self.written.add((place[0], (*place[1], ("attribute", name))))
            original_setattr(owner, name, value)

        original_setattr: Any = cls.__setattr__
        functions: dict[str, Any] = {"__getattribute__": getattribute, "__setattr__": setattribute}
        if issubclass(cls, dict):
            original_getitem: Any = cls.__getitem__
            functions["__getitem__"] = getitem
        patch = mock.patch.multiple(cls, **functions)
        with contextlib.suppress(TypeError, AttributeError):  # some classes take no new attributes
            if not self.is_paused:
                patch.__enter__()
            self.patches[cls] = patch

    def _note(self, owner: Any, name: str, value: Any) -> Any:
        """Record a read; return the value, or the watched copy of a dict."""
        place = self.places.get(id(owner))
        if place is None:
            return value
        if isinstance(owner, nn.Module):
            if isinstance(value, MethodType):
                self._read_code(owner, value.__func__)
            if name in _OWN:
                return value
        if isinstance(owner, dict) and hasattr(dict, name):  # items, get and so on: all entries count as read
            text = text_of(owner)
            if text is not None:
                self.reads.setdefault(place, text)
            return value
        if name not in getattr(owner, "__dict__", ()):
            held = next((vars(cls)[name] for cls in type(owner).__mro__ if name in vars(cls)), None)
            if hasattr(type(held), "__get__") and not isinstance(held, MemberDescriptorType):
                return value  # a method; or a property, whose own reads are recorded
        return self.keep((place[0], (*place[1], ("attribute", name))), value)

    def _note_absent(self, owner: Any, name: str) -> None:
        """Record that forward found no attribute of this name, as in `getattr(self, "flag", None)`."""
        place = self.places.get(id(owner))
        if place is None or name.startswith("__") or name in _OWN:
            return
        if isinstance(owner, nn.Module):
            has_own_fallback = type(owner).__getattr__ is not nn.Module.__getattr__
            if has_own_fallback or any(name in d for d in (owner._parameters, owner._buffers, owner._modules)):
                return
        caller = str(sys._getframe(2).f_globals.get("__name__"))
        if not caller.startswith(("torch.", "dni_fx.")) or caller.startswith("torch.nn.modules."):
            self.reads.setdefault((place[0], (*place[1], ("attribute", name))), "")

    def keep(self, place: _Place, value: Any) -> Any:
        """Record a value by its place; return the value, or the watched copy of a dict."""
        if type(value) is SimpleNamespace or (type(value) is dict and not tensors_in(value)):
            made = self.copies.get(id(value))
            copy: Any = made[2] if made else _Items(self, value) if type(value) is dict else _Namespaced(**vars(value))
            self.copies[id(value)] = place, value, copy
            if isinstance(copy, _Items):
                copy.place = place
            else:
                self._add(place, copy)
            return copy
        text = None if isinstance(value, dict) and self._add(place, value) else text_of(value)
        if text is not None:
            self.reads.setdefault(place, text)
        else:
            self._add(place, value)
        return value

    def _add(self, place: _Place, value: Any) -> bool:
        """Give an object a place, and watch its class, if it may be a config; return whether it is watched."""
        cls = type(value)
        is_fixed = not cls.__flags__ & _HEAP_TYPE or bool(cls.__flags__ & _IMMUTABLE)
        known = cls is not _Namespaced and cls.__module__.split(".")[0] in _LIBRARIES
        if isinstance(value, nn.Module) or is_fixed or known:
            return False
        if id(value) not in self.places:
            self.objects.append(value)
        self.places[id(value)] = place  # of several modules that share a config, the one that has just read it
        if cls not in self.patches:
            self._watch(cls)
        return True

    def _read_code(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Record the global variables that a function of a module reads."""
        if str(function.__module__).split(".")[0] in _LIBRARIES or (id(module), function) in self.code:
            return
        self.code[id(module), function] = module, function
        if function in self.scanned:
            return
        self.scanned.add(function)
        for steps, value in read_globals(function):
            text = text_of(value)
            if text is not None:
                self.reads.setdefault(("", steps), text)
            else:
                self._add(("", steps), value)


class _Namespaced(SimpleNamespace):
    """The copy of a namespace whose class Python does not allow to be watched."""


class _Items(dict[Any, Any]):
    """The copy of a dict that records which of its entries are read."""

    place: _Place

    def __init__(self, recorder: _Recorder, source: dict[Any, Any]) -> None:
        super().__init__(source)
        self._recorder = recorder

    def plain(self) -> dict[Any, Any]:
        return dict(dict.items(self))

    def _read(self, key: Any) -> Any:
        place = self.place[0], (*self.place[1], ("item", key))
        if dict.__contains__(self, key):
            return self._recorder.keep(place, dict.__getitem__(self, key))
        self._recorder.reads.setdefault(place, "")
        return None

    def _read_all(self) -> None:
        text = text_of(self.plain())
        if text is not None:
            self._recorder.reads.setdefault(self.place, text)
        else:
            for key in dict.keys(self):
                self._read(key)

    def __getitem__(self, key: Any) -> Any:
        value = self._read(key)
        return value if dict.__contains__(self, key) else dict.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        self._read(key)
        return dict.__contains__(self, key)

    def get(self, key: Any, default: Any = None) -> Any:
        value = self._read(key)
        return value if dict.__contains__(self, key) else default

    def __iter__(self) -> Iterator[Any]:
        self._read_all()
        return dict.__iter__(self)

    def __len__(self) -> int:
        self._read_all()
        return dict.__len__(self)

    def keys(self) -> Any:
        self._read_all()
        return dict.keys(self)

    def values(self) -> Any:
        self._read_all()
        return dict.values(self)

    def items(self) -> Any:
        self._read_all()
        return dict.items(self)

    def copy(self) -> dict[Any, Any]:
        self._read_all()
        return self.plain()

    def __eq__(self, other: object) -> bool:
        self._read_all()
        return self.plain() == other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        self._read_all()
        return dict, (self.plain(),)
