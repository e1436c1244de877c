"""A comparison as a table, as text and as a picture."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.bench import save_picture
from dni_fx.comparison.record import Comparison, Record
from dni_fx.comparison.verdict import verdict
from dni_fx.report import Fitted, add_row, plain_table

__all__ = ["Curves", "comparison_table", "comparison_view", "curves", "figures", "plot_comparison"]

_OPTIONAL = ("samples/s", "cosine", "in equal time")  # columns that a narrow console does without, the first first
_POINTS = 100  # of a curve of losses, each the mean of the steps around it


def comparison_view(comparison: Comparison, words: Callable[[str], str] = str) -> RenderableType:
    """The verdict, the table, and what its columns are.

    Args:
        words: Says a sentence of the verdict in other words: on the command line, arguments are options.
    """
    sentences = [Text(words(sentence)) for sentence in verdict(comparison)]
    failed = [
        Text(f"not trained to the end: {r.name}: {words(r.failed)}", "dim") for r in comparison.records if r.failed
    ]
    return Group(*sentences, Text(), comparison_table(comparison), *failed)


def comparison_table(comparison: Comparison) -> RenderableType:
    """A row for each way; if the console is narrow, less columns."""
    return Fitted([_table(comparison, set(_OPTIONAL[i:])) for i in range(len(_OPTIONAL) + 1)])


def figures(comparison: Comparison) -> list[dict[str, str]]:
    """The cells of each way by column."""
    columns = ["trained with"]
    if comparison.has_data:
        columns += ["loss", "beside backprop", "in equal time"]
    columns += ["score"] if any(r.scores for r in comparison.records) else []
    columns += ["activations", "time", "samples/s", "cosine"]
    rows = [_cells(comparison, record) for record in comparison.records if not record.failed]
    return [{column: row[column] for column in columns} for row in rows]


def _table(comparison: Comparison, optional: set[str]) -> Table:
    """The table with these of the columns that a narrow console does without."""
    rows = figures(comparison)
    shown = [c for c in rows[0] if c in optional or c not in _OPTIONAL]
    table = plain_table("", shown, right=shown[1:])
    for row in rows:
        add_row(table, *(row[column] for column in shown))
    table.caption = Text(_legend(comparison, shown), "dim")
    table.caption_justify = "left"
    return table


def _cells(comparison: Comparison, record: Record) -> dict[str, str]:
    first, seconds = comparison.backprop, record.step_seconds
    difference = comparison.difference(record)
    cosines = [cosine for cosine in record.cosines.values() if math.isfinite(cosine)]
    beside = "" if record is first else f"{difference.value:+.2g} ±{difference.error:.1g}".replace("±nan", "")
    unit, size = ("MiB", 2**20) if first.activations >= 2**20 else ("KiB", 2**10)
    memory = f"{record.activations / size:.1f} {unit} {100 * record.activations / max(first.activations, 1):.0f} %"
    return {
        "trained with": record.name,
        "loss": f"{comparison.final_loss(record):.4g}",
        "beside backprop": beside,
        "in equal time": f"{comparison.loss_in_equal_time(record):.4g}",
        "score": f"{record.scores[-1][1]:.4g}" if record.scores else "",
        "activations": memory if record.activations else "",
        "time": f"{seconds / first.step_seconds:.2f}x" if math.isfinite(seconds) else "",
        "samples/s": f"{comparison.samples / seconds:.0f}" if math.isfinite(seconds) else "",
        "cosine": " ".join(f"{cosine:.2f}" for cosine in cosines[:4]) + ("…" if len(cosines) > 4 else ""),
    }


def _legend(comparison: Comparison, shown: Sequence[str]) -> str:
    """What the shown columns are."""
    seconds = comparison.backprop.step_seconds
    texts = {
        "loss": f"{comparison.loss}, the mean of the last {comparison.last} of {comparison.steps} steps, on each batch "
        "before the net trains on it",
        "beside backprop": "± is half a 95 % interval, of the noise of batches",
        "in equal time": "the loss when the fastest way is done",
        "score": "of the metric, in eval mode",
        "activations": "the most that a step holds at once, without gradients of parameters",
        "time": f"of a step, beside backprop's, {1e3 * seconds:.1f} ms" if math.isfinite(seconds) else "of a step",
        "cosine": "of predicted and target gradients, for each cut",
    }
    measured = [record for record in comparison.records[1:] if not record.failed]
    if not any(math.isfinite(comparison.difference(record).error) for record in measured):
        del texts["beside backprop"]
    return "; ".join(f"{column}: {text}" for column, text in texts.items() if column in shown)


def as_text(comparison: Comparison, width: int = 100) -> str:
    """The verdict and the table as plain text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(comparison_view(comparison))
    return capture.get()


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the losses over steps and over time, and the scores, a line for each way.

    Raises:
        DniFxError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    charts = curves(comparison)
    figure = Figure(figsize=(5 * len(charts), 4))
    for axes, chart in zip(figure.subplots(1, len(charts)), charts, strict=True):
        for name, (x, y) in chart.lines.items():
            axes.plot(x, y, label=name, linewidth=1, marker="." if chart.title == "score" else "")
        axes.set(xlabel=chart.x_label, ylabel=chart.title)
        axes.legend(fontsize=7)
    figure.tight_layout()
    save_picture(figure, path)


class Curves(NamedTuple):
    """The curves of all ways, by name: x and y."""

    title: str
    x_label: str
    lines: dict[str, tuple[Sequence[float], Sequence[float]]]


def curves(comparison: Comparison) -> list[Curves]:
    """The losses over steps and over seconds, and the scores over steps if there are any."""
    over_steps, over_time = Curves(comparison.loss, "steps", {}), Curves(comparison.loss, "seconds", {})
    scores = Curves("score", "steps", {})
    for record in (record for record in comparison.records if record.losses):
        steps, losses = _curve(record.losses[: comparison.steps])
        over_steps.lines[record.name] = steps, losses
        over_time.lines[record.name] = [step * record.step_seconds for step in steps], losses
        if record.scores:
            scores.lines[record.name] = [step for step, _ in record.scores], [score for _, score in record.scores]
    return [over_steps, over_time, *([scores] if scores.lines else [])]


def _curve(losses: list[float]) -> tuple[list[float], list[float]]:
    """Steps and mean losses, at most so many points."""
    each = max(1, len(losses) // _POINTS)
    parts = [losses[i : i + each] for i in range(0, len(losses), each)]
    return [i * each + len(part) / 2 for i, part in enumerate(parts)], [sum(part) / len(part) for part in parts]
