"""Copies of dicts and namespaces that record which of their values are read."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Protocol

from dni_fx.model import Step, text_of

__all__ = ["Items", "Namespaced", "Place"]

Place = tuple[str, tuple[Step, ...]]  # the attributes `module` and `steps` of a `Read`


class _Recorder(Protocol):
    reads: dict[Place, str]

    def keep(self, place: Place, value: Any) -> Any: ...


class Namespaced(SimpleNamespace):
    """The copy of a namespace whose class Python does not allow to be watched."""


class Items(dict[Any, Any]):
    """The copy of a dict that records which of its entries are read."""

    place: Place

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
