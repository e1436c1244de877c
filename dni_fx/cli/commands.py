"""The commands, and the border where every error becomes one line and an exit code."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from dni_fx.cli.options import (
    ClassesOption,
    InputOption,
    PlanOptions,
    RewriteOptions,
    SynthesizerOption,
    Target,
    with_options,
)
from dni_fx.cli.parsing import default_folder
from dni_fx.cli.progress import Step, err, escape, out, progress
from dni_fx.errors import DniFxError, SourceError

if TYPE_CHECKING:
    from torch import nn

    from dni_fx.bench import Options, Row
    from dni_fx.compiler import Request
    from dni_fx.model import Inputs
    from dni_fx.plans import Plan
    from dni_fx.runtime import DecoupledModule

__all__ = ["app", "main"]

app = typer.Typer(
    name="dni-fx",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Cut PyTorch models into segments that train on synthetic gradients.\n\n"
    "Exit codes: 0 fine, 1 a finding (no legal cut, a check failed), 2 wrong usage or bad input, 3 the model could not "
    "be loaded or captured, 70 a bug of dni-fx.",
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout, and nothing else.")]


def main() -> None:
    """Entry point: every error becomes one line on stderr and an exit code."""
    try:
        app()
    except DniFxError as error:
        err.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            err.print("interrupted")
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception:
        err.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        err.print("[bold red]error:[/] this is a bug of dni-fx; please report the lines above")
        sys.exit(70)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dni-fx {installed_version('dni-fx')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  [cyan]dni-fx rewrite examples/mlp.py --cuts auto[/]   "
    "[cyan]dni-fx rewrite net.py:Net --input 32x3x64x64 --cuts every:Block --classes 10 -o out[/]"
)
@with_options(RewriteOptions)
def rewrite(
    target: Target,
    options: RewriteOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: NAME_dni here.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder, if dni-fx wrote it.")] = False,
    json: JsonOption = False,
    no_diff: Annotated[bool, typer.Option("--no-diff", help="Leave the graph diff out.")] = False,
) -> None:
    """Rewrite a model, show what changed, and write it to a folder.

    The folder holds model.py (generated source), plan.json, weights.safetensors and graph.diff; read it with
    dni_fx.load(folder).
    """
    folder = output or default_folder(target)
    with progress() as step:
        step("starting")
        from dni_fx import compiler, store

        store.check_destination(folder, force=force)
        request = options.request()
        module, plan, _ = _captured(target, options.input, request, step)
        step("rewriting")
        net = compiler.rewrite(module, plan, request.synthesizer, request.settings)
        step(f"writing {folder}")
        store.save(net, folder, force=force)
    if json:
        typer.echo(net.dni.plan.to_json(), nl=False)
        err.print(f"wrote {folder}", highlight=False)
        return
    _show_plan(net.dni.plan)
    if not no_diff:
        from dni_fx.report import paint

        out.print()
        out.print(paint((folder / "graph.diff").read_text(encoding="utf-8")), soft_wrap=True)
    out.print(
        f"wrote [bold]{escape(str(folder))}[/]: model.py, plan.json, weights.safetensors, graph.diff", soft_wrap=True
    )


@app.command(epilog="Example:  [cyan]dni-fx plan net.py --cuts 3 --json > plan.json[/]")
@with_options(PlanOptions)
def plan(target: Target, options: PlanOptions, json: JsonOption = False) -> None:
    """Decide where to cut, and write nothing."""
    with progress() as step:
        step("starting")
        _, decided, _ = _captured(target, options.input, options.request(), step)
    if json:
        typer.echo(decided.to_json(), nl=False)
    else:
        _show_plan(decided)


@app.command(epilog="Example:  [cyan]dni-fx check net.py:Net --input 32x3x64x64 --cuts every:Block[/]")
@with_options(RewriteOptions)
def check(
    target: Annotated[str, typer.Argument(help="As for rewrite, or a folder that it wrote.", show_default=False)],
    options: RewriteOptions,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Prove that the rewrite of a model is the same network, decoupled; exit code 1 if it is not."""
    with progress() as step:
        step("starting")
        from dni_fx import compiler, proof

        if Path(target, "plan.json").is_file():
            step(f"reading {target}")
            net, example = _saved(target, options.input)
        else:
            request = options.request()
            module, plan, example = _captured(target, options.input, request, step)
            net = compiler.rewrite(module, plan, request.synthesizer, request.settings)
        step("checking")
        with contextlib.redirect_stdout(sys.stderr):
            report = proof.check(net, example)
    if json:
        typer.echo(dumps(report.to_dict(), indent=2))
    else:
        out.print(proof.check_table(net.dni.plan, report))
    if not report:
        raise typer.Exit(1)


@app.command(epilog="Example:  [cyan]dni-fx bench net.py:Net --input 32x3x64x64 --segments 2,auto --plot memory.png[/]")
def bench(
    target: Target,
    input: InputOption = None,
    segments: Annotated[
        str, typer.Option(help="Numbers of segments to cut into, and auto: as in 2,4,8,auto.")
    ] = "2,4,8,auto",
    steps: Annotated[int, typer.Option(help="Timed steps of each, in turn with backprop's.")] = 10,
    synthesizer: SynthesizerOption = "auto",
    classes: ClassesOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the memory over the step, as PNG.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Measure memory and time of a training step: backprop, checkpointing and the like, and this tool.

    Memory is what the step itself makes: parameters, optimizer state and the batch are not in it; "activations" leave
    gradients of parameters out, too. The loss is the mean square of the outputs, the optimizer Adam; "stepping" is
    step="segment", "compiler, half" the partitioner of torch.compile with activation_memory_budget=0.5, whose gradients
    all come at once and are counted in both.
    """
    with progress() as step:
        step("starting")
        from dni_fx import bench as measuring
        from dni_fx.settings import Settings, check_settings
        from dni_fx.synthesizers import resolve

        options = measuring.Options(
            cuts=measuring.parse_segments(segments), steps=steps, synthesizer=synthesizer, classes=classes
        )
        resolve(synthesizer, (), -1, None)
        check_settings(Settings(classes=classes))
        if plot is not None:
            measuring.check_plot(plot)
        model, example = _loaded(target, input, step)
    rows = []
    interrupted = False
    try:
        for row in _measuring(model, example, options):
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
    if not rows:
        raise typer.Exit(130)
    if json:
        typer.echo(dumps([measuring.to_dict(row) for row in rows], indent=2))
    else:
        out.print(measuring.bench_table(rows))
    if plot is not None:
        measuring.plot(rows, plot)
        err.print(f"wrote {plot}", highlight=False)
    if interrupted:
        raise typer.Exit(130)
    ours = [row for row in rows if any(row.name.startswith(name) for name in options.cuts)]
    if all(row.failed for row in ours):
        raise typer.Exit(1)


@app.command()
def diff(folder: Annotated[Path, typer.Argument(help="A folder that `dni-fx rewrite` wrote.")]) -> None:
    """Show again what a rewrite changed."""
    from dni_fx.report import paint

    try:
        text = (folder / "graph.diff").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise DniFxError(f"{folder} is no folder that dni-fx wrote: no graph.diff in it") from None
    out.print(paint(text), soft_wrap=True)


@app.command()
def synthesizers() -> None:
    """List the synthesizers that can be chosen by name."""
    from dni_fx.synthesizers import REGISTRY

    table = Table("name", "what it is")
    table.add_row("auto", "linear for vectors; maps and sequences: guided_head with a loss, else conv and linear")
    for name, factory in sorted(REGISTRY.items()):
        table.add_row(name, (factory.__doc__ or "").strip().split("\n")[0])
    out.print(table)


def _captured(
    target: str, specs: list[str] | None, request: "Request", step: Step
) -> "tuple[DecoupledModule, Plan, Inputs]":
    from dni_fx.compiler import capture_and_plan

    model, example = _loaded(target, specs, step)
    with contextlib.redirect_stdout(sys.stderr):
        step("capturing, and comparing the capture with the model" if request.verify else "capturing")
        return *capture_and_plan(model, example, request), example


def _loaded(target: str, specs: list[str] | None, step: Step) -> "tuple[nn.Module, Inputs]":
    """The model and its example inputs."""
    from dni_fx.api import example_inputs_of
    from dni_fx.model import describe, load_target, parse_specs

    given = parse_specs(specs) if specs else None
    with contextlib.redirect_stdout(sys.stderr):  # what the person's code prints
        step(f"loading {target}")
        model, beside = load_target(target)
        step("looking for example inputs")
        example = given or beside or example_inputs_of(model, None, None)
        if not given and beside is None:
            err.print(f"no example inputs given: {'; '.join(describe(example))} fits", highlight=False)
        return model, example


def _saved(folder: str, specs: list[str] | None) -> "tuple[DecoupledModule, Inputs]":
    """The net in a folder that `rewrite` wrote, and inputs for it."""
    from dni_fx import store
    from dni_fx.model import inputs_like, parse_specs

    try:
        net = store.load(folder)
    except SourceError:
        raise DniFxError(
            f"{folder} needs the model that it was made from: dni-fx check model.py --cuts {folder}"
        ) from None
    return net, parse_specs(specs) if specs else inputs_like(net.dni.plan.inputs)


def _measuring(model: "nn.Module", example: "Inputs", options: "Options") -> "Iterator[Row]":
    """Measure, with a bar that shows how far it is."""
    from dni_fx import bench as measuring

    ways = ["backprop", *(name for name, _ in measuring.ways(options))]
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=len(ways))

        def show(name: str) -> None:
            bar.update(task, description=name, completed=ways.index(name))

        with contextlib.redirect_stdout(sys.stderr):
            yield from measuring.measure(model, example, options, show)


def _show_plan(decided: "Plan") -> None:
    from dni_fx.report import plan_table

    out.print(plan_table(decided))
