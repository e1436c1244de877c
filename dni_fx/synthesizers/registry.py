"""Synthesizers by name."""

from collections.abc import Callable

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Factory

__all__ = ["REGISTRY", "register", "resolve"]

REGISTRY: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a synthesizer available by name, to `transform(synthesizer=name)` and the command line."""

    def add(factory: Factory) -> Factory:
        REGISTRY[name] = factory
        return factory

    return add


def resolve(synthesizer: str | Factory, shape: tuple[int, ...], axis: int) -> tuple[str, Factory]:
    """The name and the factory that `synthesizer` stands for; "auto" picks conv for maps, else linear."""
    if not isinstance(synthesizer, str):
        return getattr(synthesizer, "__name__", type(synthesizer).__name__), synthesizer
    if synthesizer == "auto":
        is_map = axis == 1 and len(shape) in (3, 4, 5)
        synthesizer = "conv" if is_map else "linear"
    if synthesizer not in REGISTRY:
        raise DniFxError(f"no synthesizer named {synthesizer!r}; there are auto, {', '.join(sorted(REGISTRY))}")
    return synthesizer, REGISTRY[synthesizer]
