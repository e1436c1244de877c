"""The rows of `bench`, as a table and as a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dni_fx.bench.measure import Row
from dni_fx.bench.ways import OTHERS
from dni_fx.errors import DniFxError
from dni_fx.report import Fitted, add_row, plain_table

__all__ = ["bench_table", "bench_verdict", "check_plot", "plot", "save_picture", "to_dict"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPARKS = " ▁▂▃▄▅▆▇█"

_WIDTH = 12


def bench_table(rows: Sequence[Row]) -> RenderableType:
    """A row for each way to train: memory beside backprop's, time as a ratio to backprop's, memory over the step."""
    unit, size = ("MiB", 2**20) if rows[0].peak >= 2**20 else ("KiB", 2**10)
    table = Fitted([_table(rows, size, with_traces=True), _table(rows, size, with_traces=False)])
    failed = [Text(f"not measured: {row.name}: {row.failed}", "dim") for row in rows if row.failed]
    legend = (
        f"memory: the most {unit} that the step makes; time: as a multiple of that of a step of backprop beside it, "
        f"median and 10th to 90th percentile (backprop's own row shows the noise); a step of backprop takes "
        f"{rows[0].milliseconds:.1f} ms"
    )
    sentences = [Text(sentence) for sentence in bench_verdict(rows)]
    return Group(*sentences, table, Text(legend, "dim"), *failed)


def bench_verdict(rows: Sequence[Row]) -> list[str]:
    """What the lightest cut model holds, and the lightest way with exact gradients; none if neither was measured."""
    measured = [row for row in rows[1:] if not row.failed]
    ours = min((row for row in measured if row.name not in OTHERS), key=lambda row: row.activations, default=None)
    exact = min((row for row in measured if row.name in OTHERS), key=lambda row: row.activations, default=None)
    if ours is None:
        return []

    def figures(row: Row) -> str:
        share = 100 * row.activations / max(rows[0].activations, 1)
        return f"{share:.0f} % of backprop's activations and takes {row.ratio.median:.2f} times its time"

    beside = "" if exact is None else f" The lightest way with exact gradients, {exact.name}, holds {figures(exact)}."
    worth = " The cuts save no memory here." if ours.activations >= rows[0].activations else ""
    return [f"Cut ({ours.name}), a step holds {figures(ours)}.{beside}{worth}"]


def _table(rows: Sequence[Row], size: int, *, with_traces: bool) -> Table:
    """The rows that were measured, in units of `size` bytes."""
    numbers = ("activations", "with grads", "time", "spread")
    table = plain_table("", ("trained with", *numbers, *(["the step"] if with_traces else [])), right=numbers)
    top = max(row.peak for row in rows)
    for row in (row for row in rows if not row.failed):
        add_row(
            table,
            row.name,
            _beside(row.activations, rows[0].activations, size),
            _beside(row.peak, rows[0].peak, size),
            f"{row.ratio.median:.2f}x",
            f"{row.ratio.low:.2f}-{row.ratio.high:.2f}",
            *([Text(spark(row.trace, top), "cyan")] if with_traces else []),
        )
    return table


def _beside(bytes_: int, first: int, unit: int) -> str:
    """An amount of memory, and its difference from the first row's."""
    return f"{bytes_ / unit:.1f} {100 * (bytes_ / first - 1):+.0f} %"


def spark(trace: Sequence[int], top: int) -> str:
    """Draw a trace in a few characters: the most in each part of the step; `top` is a full block."""
    parts = [trace[len(trace) * i // _WIDTH : len(trace) * (i + 1) // _WIDTH] for i in range(_WIDTH)]
    return "".join(_SPARKS[round(max(part, default=0) / max(top, 1) * (len(_SPARKS) - 1))] for part in parts)


def check_plot(path: Path) -> None:
    """Raise a DniFxError if `plot` cannot write a picture there: call it before the long run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DniFxError("a picture needs matplotlib: pip install dni-fx[plots]")
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir() or path.is_dir():
        raise DniFxError(f"cannot write a picture to {path}: a .png, .svg or .pdf in a folder that exists")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the bytes alive over the step, a line for each way to train."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
    for row in (row for row in rows if row.trace):
        count = len(row.trace)
        axes.plot([i / count for i in range(count)], [live / 2**20 for live in row.trace], label=row.name, linewidth=1)
    axes.set(xlabel="operations, as a share of the step's", ylabel="MiB alive that the step made")
    axes.legend(fontsize=7)
    figure.tight_layout()
    save_picture(figure, path)


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a picture; a DniFxError if that fails."""
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DniFxError(f"cannot write a picture to {path} ({error.strerror or error})") from None


def to_dict(row: Row) -> dict[str, Any]:
    """The row as plain data, without its trace."""
    if row.failed:
        return {"name": row.name, "failed": row.failed}
    return {
        "name": row.name,
        "activation_bytes": row.activations,
        "peak_bytes": row.peak,
        "milliseconds": row.milliseconds,
        "time_ratio": row.ratio._asdict(),
    }
