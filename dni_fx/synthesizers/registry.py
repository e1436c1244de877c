"""Synthesizers by name."""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dni_fx.errors import DniFxError, described
from dni_fx.settings import Loss
from dni_fx.synthesizers.base import Factory
from dni_fx.synthesizers.imported import describe_factory, import_factory

__all__ = [
    "FOR_MAPS",
    "REGISTRY",
    "chosen_options",
    "import_synthesizers",
    "options_of",
    "paths_of",
    "register",
    "resolve",
]

# The synthesizers of maps that "auto" may be, from the dearest to the cheapest. The second takes a ninth of the first's
# FLOPs, the third a sixteenth of the second's. They learn about as well: benchmarks/results/memory.notes.md.
FOR_MAPS = ("conv", "conv(kernel_size=1)", "conv(kernel_size=1, pool=4)")

F = TypeVar("F", bound=Callable[..., Any])

REGISTRY: dict[str, Callable[..., Any]] = {}

_REMOVED = ("critic", "local_head")  # that saved plans may name


def register(name: str) -> Callable[[F], F]:
    """Register a synthesizer under a name, for `transform(synthesizer=name)` and the command line."""

    def add(factory: F) -> F:
        REGISTRY[name] = factory
        return factory

    return add


def resolve(
    synthesizer: str | Factory,
    shape: tuple[int, ...],
    axis: int,
    loss: Loss | None = None,
    *,
    dense: bool = False,
    for_maps: str = FOR_MAPS[0],
) -> tuple[str, Factory]:
    """The name and the factory of a synthesizer.

    Args:
        synthesizer: A registered name, with options as in "mlp(hidden_layers=2)"; "auto"; or a factory, as it is.
            "auto" picks `for_maps` for maps, linear for vectors and sequences; where a loss is given, the guided head
            for maps and sequences (benchmarks/paper_feedforward.py and synthesizers_by_net.py say why). At a cut in
            time, `factories` chooses.
        loss: For the synthesizers that differentiate a loss.
        dense: There are labels for every position of a map: heads on maps get the option `dense`, unless it is given.
        for_maps: One of `FOR_MAPS`.

    Raises:
        DniFxError: If the name or an option is not known, or the loss is missing.
    """
    if not isinstance(synthesizer, str):
        return describe_factory(synthesizer)[0], synthesizer
    if synthesizer == "auto":
        synthesizer = for_maps if axis == 1 and len(shape) in (3, 4, 5) else "linear"
        if loss is not None and len(shape) > 2:
            synthesizer = "guided_head"
    name, options = _parsed(synthesizer)
    if name == "auto":
        raise DniFxError(
            f"synthesizer {synthesizer!r}: auto takes no options; name one of {', '.join(sorted(REGISTRY))}"
        )
    if name in _REMOVED and name not in REGISTRY:
        raise DniFxError(
            f"the synthesizer {name} was removed from dni-fx: make the net anew with the synthesizer exit (the model's "
            "own later layers, up to the loss) or guided_head"
        )
    if name not in REGISTRY:
        raise DniFxError(f"no synthesizer named {described(name)}; there are auto, {', '.join(sorted(REGISTRY))}")
    factory = REGISTRY[name]
    is_map = axis == 1 and len(shape) > 2
    if dense and is_map and "dense" in options_of(factory) and "dense" not in options:
        options["dense"] = True
        synthesizer = f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})"
    if "loss" in options_of(factory):
        if loss is None:
            raise DniFxError(
                f"synthesizer {name} needs the loss and labels: give loss= and classes= (or context_size=)"
            )
        options["loss"] = loss
    return synthesizer, _bound(factory, name, options) if options else factory


def chosen_options(synthesizer: str, name: str) -> dict[str, Any] | None:
    """The options in a text such as "mlp(hidden_layers=2)", if it names the synthesizer `name`; else None.

    Raises:
        DniFxError: If the text is none of this form, or the synthesizer has not the option.
    """
    named, options = _parsed(synthesizer)
    if named != name:
        return None
    _bound(REGISTRY[name], name, options)
    return options


def paths_of(synthesizer: str | Factory, names: Iterable[str]) -> dict[str, str]:
    """The path of each synthesizer that dni-fx does not have, by its name without options.

    Args:
        synthesizer: An argument of `resolve`, which returned the names.
    """
    heads = [name.partition("(")[0] for name in names]
    if not isinstance(synthesizer, str):
        return {head: describe_factory(synthesizer)[1] for head in heads}
    described = {head: describe_factory(REGISTRY[head]) for head in heads if not _is_built_in(head)}
    return {head: f"{path}(...)" if "(" in name else path for head, (name, path) in described.items()}


def _is_built_in(name: str) -> bool:
    """Whether dni-fx has a synthesizer under this name, without a call of `register` by the person."""
    factory = REGISTRY[name]
    return factory.__module__.startswith("dni_fx.") and name == next(n for n, f in REGISTRY.items() if f is factory)


def import_synthesizers(
    names: Mapping[str, str], paths: Mapping[str, str], *, named: bool
) -> Mapping[str, str | Factory]:
    """The synthesizers of a saved plan, as `resolve` takes them.

    Args:
        names: Names by crossing.
        paths: What `paths_of` returned.
        named: The synthesizers were chosen by name; those of the person's are registered again under their names.

    Raises:
        DniFxError: If one cannot be imported, or its name is taken.
    """
    found = {name: import_factory(path) for name, path in paths.items()}
    if not named:
        chosen = {crossing: (name, *_parsed(name)) for crossing, name in names.items()}
        return {
            crossing: functools.partial(found[head], **options) if head in found else name
            for crossing, (name, head, options) in chosen.items()
        }
    for name, factory in found.items():
        if REGISTRY.setdefault(name, factory) != factory:
            raise DniFxError(f"the name {name!r} is taken by another synthesizer than the {paths[name]} of the plan")
    return names


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of "name" or "name(option=literal, ...)"."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        return call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        raise DniFxError(f"synthesizer {described(text)}: give a name, or name(option=value, ...)") from None


def _bound(factory: Factory, name: str, options: dict[str, Any]) -> Factory:
    known = options_of(factory)
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        allowed = ", ".join(option for option in known if option != "loss") or "none"
        raise DniFxError(f"synthesizer {name} has no option {unknown[0]!r}; there are {allowed}")
    return functools.partial(factory, **options)


def options_of(factory: Factory) -> dict[str, Any]:
    """Defaults of the keyword-only arguments; of the base class, too, where a class passes `**options` on."""
    found: dict[str, Any] = {}
    for one in factory.__mro__ if isinstance(factory, type) else (factory,):
        parameters = inspect.signature(one).parameters.values()
        found |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
