"""The command `bench`."""

import contextlib
import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dni_fx.cli.options import (
    ClassesOption,
    ContextSizeOption,
    FrontendOption,
    InputOption,
    LossOption,
    StateOption,
    SynthesizerOption,
    Target,
    TrainingOption,
    with_options,
)
from dni_fx.cli.pages import PageWriter, ReportOption
from dni_fx.cli.parsing import parse_cuts, parse_state, parse_training
from dni_fx.cli.progress import note, out, progress, progress_bar, stages
from dni_fx.cli.targets import load_target
from dni_fx.paths import as_path

if TYPE_CHECKING:
    from torch import nn

    from dni_fx.bench import Options, Row
    from dni_fx.cuts import Cuts
    from dni_fx.model import Inputs

__all__ = ["bench"]


@with_options()
def bench(
    target: Target,
    input: InputOption = None,
    segments: Annotated[
        str | None,
        typer.Option(
            help="Numbers of segments to measure, with commas; with auto, dni-fx chooses the cuts. Default: 2,4,auto; "
            "with --cuts, none.",
            show_default=False,
        ),
    ] = None,
    cuts: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to cut, as for `dni-fx rewrite`; repeat it for each row to measure.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Timed steps for each row; each alternates with a timed step of backprop.")
    ] = 10,
    synthesizer: SynthesizerOption = "auto",
    classes: ClassesOption = None,
    context_size: ContextSizeOption = None,
    loss: LossOption = None,
    training: TrainingOption = None,
    frontend: FrontendOption = "auto",
    state: StateOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a picture of the memory over the step: a .png, .svg or .pdf.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the numbers, as JSON.")] = False,
    report: ReportOption = None,
) -> None:
    """Measure memory and time of a training step: dni-fx beside backprop, checkpointing and others.

    Memory is what the step allocates: no parameters, optimizer state or batch. The column "activations" leaves out the
    gradients of parameters, too. Without --loss, the loss is the mean square of the outputs; the optimizer is Adam. The
    rows with "stepping" use step="segment". The row "compiler, half" uses torch.compile with
    activation_memory_budget=0.5; it makes all gradients at once, so both columns count them.
    """
    with progress() as show:
        show("starting")
        from dni_fx import bench as measuring
        from dni_fx.settings import loss_function
        from dni_fx.synthesizers import resolve

        options = measuring.Options(
            _measured_cuts(segments, cuts),
            steps,
            synthesizer,
            classes,
            training_loss=loss,
            context_size=context_size,
            training=parse_training(training),
            frontend=frontend,
            state=parse_state(state),
        )
        resolve(synthesizer, (), -1, None if loss is None else loss_function(loss))
        _ = options.settings  # raises an error if two of them exclude each other
        if plot is not None:
            plot = as_path(plot, "--plot")
            measuring.check_plot(plot)
        page = PageWriter(report)
        model, example = load_target(target, input, show)
    rows, interrupted = _measure(model, example, options)
    if rows and json:
        typer.echo(dumps([measuring.to_dict(row) for row in rows], indent=2))
    elif rows:
        out.print(measuring.bench_table(rows))
    if rows and plot is not None:
        measuring.plot(rows, plot)
        note(f"wrote {plot}")
    if rows:
        page.write_bench(model, example, options, rows)
    if interrupted:
        raise typer.Exit(130)
    ours = [row for row in rows if any(row.name.startswith(name) for name in options.cuts)]
    if all(row.failed for row in ours):
        raise typer.Exit(1)


def _measured_cuts(segments: str | None, cuts: Sequence[str] | None) -> "dict[str, Cuts]":
    """The cuts of --segments and --cuts, by the name of their row."""
    from dni_fx import bench as measuring
    from dni_fx.arguments import check_arguments

    if segments is None:
        segments = "" if cuts else "2,4,auto"
    found = measuring.parse_segments(segments) if segments or not cuts else {}
    for text in cuts or []:
        where = parse_cuts(text)
        check_arguments({"cuts": where})
        if isinstance(where, int) or where == "auto":
            found |= measuring.segments(where)
        else:
            found[f"after {', '.join(where)}" if isinstance(where, list) else text] = where
    return found


def _measure(model: "nn.Module", example: "Inputs", options: "Options") -> "tuple[list[Row], bool]":
    """Measure every way to train, behind a progress bar; on Ctrl-C, return the rows so far, and True."""
    from dni_fx import bench as measuring

    rows: list[Row] = []
    ways = ["backprop", *(name for name, _ in measuring.ways(options))]
    with progress_bar() as bar, stages() as begin:
        task = bar.add_task("", total=len(ways))

        def show(name: str) -> None:
            begin(name)
            bar.update(task, description=name, completed=ways.index(name))

        try:
            with contextlib.redirect_stdout(sys.stderr):
                for row in measuring.measure(model, example, options, show):
                    rows.append(row)
        except KeyboardInterrupt:
            return rows, True
    return rows, False
