"""Tables that show every cell whole: long texts are folded, and if the console is narrow, columns are left out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich import box
from rich.bar import Bar
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["Fitted", "Hanging", "Proportion", "abridged", "add_row", "hanging", "plain_table"]


T = TypeVar("T")

_MOST = 12  # rows of a table that is abridged


def plain_table(title: str, columns: Sequence[str], *, right: Collection[str] = (), footer: bool = False) -> Table:
    """A compact table without rows, whose texts are no markup.

    Args:
        right: Columns that are aligned to the right.
    """
    table = Table(
        title=Text(title, "table.title") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=footer,
    )
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    return table


def abridged(table: Table, rows: Sequence[T], add: Callable[[int, T], None], *, whole: bool = False) -> None:
    """Add the rows by `add`, which gets each number and row; of many, the first and last, unless `whole`."""
    gap = range(_MOST // 2, len(rows) - (_MOST - 1 - _MOST // 2)) if len(rows) > _MOST and not whole else range(0)
    for number, row in enumerate(rows):
        if number not in gap:
            add(number, row)
        elif number == gap.start:
            table.add_row("…", Text(f"{len(gap)} more: --all", "dim"))


def add_row(table: Table, *cells: RenderableType) -> None:
    """Add a row; a str is a text as it stands."""
    table.add_row(*[Text(cell) if isinstance(cell, str) else cell for cell in cells])


def hanging(text: str, console: Console, first: int, width: int) -> list[str]:
    """The lines of a text that is wrapped; those after the first are indented.

    Args:
        first: The width of the first line.
        width: The width of the other lines.
    """
    begin = "".join(part.plain for part in Text(text).wrap(console, first)[:1])
    indent = min(4 if width > 60 else 2, width - 1)
    rest = Text(text[len(begin) :].lstrip()).wrap(console, width - indent)
    return [begin.rstrip(), *(" " * indent + part.plain.rstrip() for part in rest if part)]


@dataclass(frozen=True)
class Hanging:
    """A text for the cell of a table; its lines after the first are indented."""

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(hanging(self.text, console, options.max_width, options.max_width)), self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, Text(self.text).cell_len)


@dataclass(frozen=True)
class Proportion:
    """A bar whose length is a share of the column, in eighths of a character; in whole ones if the console is ASCII."""

    part: float
    whole: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.ascii_only:
            yield Text("#" * round(options.max_width * self.part / self.whole))
        else:
            yield Bar(self.whole, 0, self.part)


@dataclass(frozen=True)
class Fitted:
    """The first of some tables that is as narrow as the console; if there is none, the last."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (t for t in self.tables if t.__rich_measure__(console, options).maximum <= options.max_width)
        yield next(fitting, self.tables[-1])
