"""Defaults of options from the table `[tool.dni-fx]` of the nearest pyproject.toml."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand

from dni_fx.errors import DniFxError, described, first_line
from dni_fx.paths import is_file

__all__ = ["Command", "is_from_file"]

_TABLE = "tool.dni-fx"

_from_file: ContextVar[frozenset[str]] = ContextVar("from_file", default=frozenset())


class Command(TyperCommand):
    """A command whose options have defaults in pyproject.toml; `--help` does not read the file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not (ctx.resilient_parsing or set(args) & set(ctx.help_option_names)):
            ctx.default_map = _defaults(self.name or "", ctx.find_root().command)
        rest = super().parse_args(ctx, args)
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        _from_file.set(frozenset(name for name, source in sources.items() if source and source.name == "DEFAULT_MAP"))
        return rest


def is_from_file(*parameters: str) -> bool:
    """Whether any of these parameters of the command that runs has its value from pyproject.toml."""
    return not _from_file.get().isdisjoint(parameters)


def _defaults(command: str, group: Any) -> dict[str, Any]:
    """The defaults for one command, by parameter; those of its own table go before those for all commands.

    Raises:
        DniFxError: If the file cannot be read, or any of its tables for dni-fx has a key or value that does not fit.
    """
    path = next(filter(is_file, _places()), None)
    if path is None:
        return {}
    table = _read(path)
    options = {name: _options(group.commands[name]) for name in group.commands}
    own = {name: table.pop(name) for name in options if isinstance(table.get(name), dict)}
    every = {key: option for of_command in options.values() for key, option in of_command.items()}
    # `cuts` of one command may be a list, and of another only a text.
    shared = _checked(table, every | options[command], f"{path} [{_TABLE}]", list(options))
    by_command = {name: _checked(own[name], options[name], f"{path} [{_TABLE}.{name}]") for name in own}
    values = shared | by_command.get(command, {})
    return {option.parameter: values[key] for key, option in options[command].items() if key in values}


def _places() -> Iterator[Path]:
    folder = Path.cwd()
    return (place / "pyproject.toml" for place in (folder, *folder.parents))


def _read(path: Path) -> dict[str, Any]:
    """The table of a file; empty if there is none."""
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DniFxError(f"cannot read {path}: {first_line(error)}") from None
    for name in _TABLE.split("."):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise DniFxError(f"{path}: {name} is {described(table)}, not a table: write [{_TABLE}]")
    return dict(table)


@dataclass(frozen=True)
class _Option:
    """An option as a key."""

    parameter: str  # of the command's function
    type: type
    is_repeated: bool

    def value(self, value: Any, where: str) -> Any:
        """The value as the command line takes it, where the option is repeated a list."""
        if not self.is_repeated:
            return self._single(value, where)
        return [self._single(entry, where) for entry in (value if isinstance(value, list) else [value])]

    def _single(self, value: Any, where: str) -> Any:
        taken, words = _TAKEN.get(self.type, _TEXT)
        if not isinstance(value, taken) or (isinstance(value, bool) and self.type is not bool):
            more = " or a list of them" if self.is_repeated else ""
            raise DniFxError(f"{where} is {described(value)}, not {words}{more}")
        return value if self.type in _TAKEN else str(value)


_TAKEN: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
}
_TEXT = (str | int | float, "a text or a number")  # a number, as in cuts = 3


def _options(command: Any) -> dict[str, _Option]:
    """The options of a command by key: as they are written, without the dashes in front."""
    hints = get_type_hints(command.callback)
    found: dict[str, _Option] = {}
    for param in command.params:
        if param.param_type_name != "option" or param.name not in hints:  # --help is not a parameter
            continue
        hint = hints[param.name]
        kind = next(one for one in get_args(hint) if one is not NoneType) if get_origin(hint) is UnionType else hint
        repeated = get_origin(kind) is list
        option = _Option(param.name, get_args(kind)[0] if repeated else kind, repeated)
        found |= {name.removeprefix("--"): option for name in param.opts if name.startswith("--")}
    return found


def _checked(
    table: Mapping[str, Any], options: Mapping[str, _Option], where: str, tables: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of a table by key."""
    values = {}
    for given, value in table.items():
        key = given.replace("_", "-")
        if key not in options:
            if isinstance(value, dict):
                raise DniFxError(f"{where}: there is no command {described(given)}; there are {', '.join(tables)}")
            near = difflib.get_close_matches(key, [*options, *tables], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(options)) or 'none'}"
            raise DniFxError(f"{where}: there is no option {described(given)}{hint}")
        if key in values:
            raise DniFxError(f"{where}: {key} is there twice, with dashes and with underscores")
        values[key] = options[key].value(value, f"{where}: {given}")
    return values
