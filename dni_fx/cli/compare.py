"""The command `compare`."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dni_fx.cli.defaults import is_from_file
from dni_fx.cli.messages import in_options
from dni_fx.cli.options import (
    ClassesOption,
    ContextSizeOption,
    InputOption,
    Target,
    TrainingOption,
    with_options,
)
from dni_fx.cli.pages import PageWriter, ReportOption
from dni_fx.cli.parsing import parse_cuts, parse_training
from dni_fx.cli.progress import err, note, out, progress, shows_progress, stages
from dni_fx.cli.targets import batches_of, load_model, load_target, named
from dni_fx.errors import DniFxError
from dni_fx.paths import as_path

if TYPE_CHECKING:
    from dni_fx.comparison import Comparison

__all__ = ["compare"]

_REFRESH = 0.25  # seconds


@with_options()
def compare(
    target: Target,
    data: Annotated[
        str | None,
        typer.Option(
            help="The batches, FILE.py:NAME: an iterable of (inputs, target), such as a DataLoader, or a function that "
            "returns one; or of dicts, for a model that returns its own loss. Default: noise, on which losses mean "
            "nothing.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each way.")] = 200,
    cuts: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to cut, as for `dni-fx rewrite`; repeat it to compare. Default: auto.", show_default=False
        ),
    ] = None,
    synthesizer: Annotated[
        list[str] | None,
        typer.Option(help="What predicts gradients; repeat it to compare. Default: auto.", show_default=False),
    ] = None,
    classes: ClassesOption = None,
    context_size: ContextSizeOption = None,
    training: TrainingOption = None,
    step: Annotated[
        str,
        typer.Option(
            help="When the optimizer steps. loop: after the backward pass. segment: each segment has an optimizer of "
            "its own, which steps right after the backward pass of the segment."
        ),
    ] = "loop",
    loss: Annotated[
        str | None,
        typer.Option(
            help="The loss: a name in torch.nn.functional, or FILE.py:NAME, a function of (outputs, target). Default: "
            "cross entropy for labels, the mean squared error for floats, or the loss that the model returns.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="The score, FILE.py:NAME: a function of the net that returns a number, such as its accuracy on data "
            "that it is not trained on.",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:NAME, a function that makes an optimizer from parameters. Default: Adam.", show_default=False
        ),
    ] = None,
    input: InputOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the curves: a .png, .svg or .pdf.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Keep the run in this file; if it is there, go on from it.", show_default=False),
    ] = None,
    report: ReportOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the numbers, as JSON.")] = False,
) -> None:
    """Does cutting hurt this model on this data? Train it by backprop, with checkpointing and cut, and say.

    All ways start from the same weights and train on the same batches in turn. The output is a verdict, and a table of
    loss, score, memory and time. Ctrl-C ends the run after the step, and shows what there is.
    """
    with progress() as show:
        show("starting")
        from dni_fx import bench, comparison
        from dni_fx.model import seed

        if plot is not None:
            plot = as_path(plot, "--plot")
            bench.check_plot(plot)
        page = PageWriter(report)
        shared = _shared(classes, context_size, training, step)
        ways = _ways(cuts or ["auto"], synthesizer or ["auto"], shared)
        options: dict[str, Any] = {"loss": named(loss) if loss is not None and ":" in loss else loss}
        seed(0)  # a model that draws its weights draws the same in each run
        if data is None and context_size is not None:
            raise DniFxError("--context-size: the targets of the batches are the vectors: give --data")
        if data is None:
            model, example = load_target(target, input, show)
            options |= {"example_inputs": example.args, "example_kwargs": example.kwargs}
        else:
            model = load_model(target, show)
            options["data"] = batches_of(data)
            if input and not is_from_file("input"):
                raise DniFxError("with --data the first batch is the example: leave --input out")
        options |= {name: named(text) for name, text in (("metric", metric), ("optimizer", optimizer)) if text}
        show("cutting the model")
    with contextlib.redirect_stdout(sys.stderr), stages() as begin, _live() as live:
        begin(f"training for {steps} steps")
        result = comparison.compare(model, steps=steps, ways=ways, file=resume, progress=live, **options)
    _print(result, json=json)
    if plot is not None:
        comparison.plot_comparison(result, plot)
        note(f"wrote {plot}")
    page.write_comparison(result)
    if result.interrupted:
        raise typer.Exit(130)
    if not result.cut:
        raise typer.Exit(1)


def _shared(classes: int | None, context_size: int | None, training: list[str] | None, step: str) -> dict[str, Any]:
    """The arguments of `dni_fx.transform` that all cut models share, without those that have their default."""
    from dni_fx.arguments import check_arguments
    from dni_fx.settings import DEFAULTS, Settings

    settings = Settings(classes=classes, context_size=context_size, training=parse_training(training))
    check_arguments({"step": step})
    given = {name: getattr(settings, name) for name in ("classes", "context_size", "training")}
    return {k: v for k, v in given.items() if v != getattr(DEFAULTS, k)} | ({} if step == "loop" else {"step": step})


def _ways(cuts: list[str], synthesizers: list[str], shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of `dni_fx.transform` for each pair."""
    from dni_fx.synthesizers import resolve

    for name in synthesizers:
        resolve(name, (), -1, None)
    return [
        {"cuts": parse_cuts(where)} | ({} if name == "auto" else {"synthesizer": name}) | shared
        for where, name in itertools.product(cuts, synthesizers)
    ]


@contextlib.contextmanager
def _live() -> "Iterator[Callable[[Comparison], None]]":
    """A function that shows the result so far on stderr, if that is a terminal."""
    if not shows_progress():
        yield lambda result: None
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from dni_fx.comparison import comparison_table

    shown = 0.0
    with Live(console=err, transient=True, auto_refresh=False) as live:

        def show(result: "Comparison") -> None:
            nonlocal shown
            if time.monotonic() - shown > _REFRESH:
                shown = time.monotonic()
                line = Text(f"{result.steps} steps, {100 * result.steps // result.of} %")
                live.update(Group(line, comparison_table(result)), refresh=True)

        yield show


def _print(result: "Comparison", *, json: bool) -> None:
    from dni_fx.comparison import comparison_view, verdict

    if json:
        typer.echo(dumps({"verdict": verdict(result)} | result.to_dict(), indent=2))
    else:
        out.print(comparison_view(result, in_options))
