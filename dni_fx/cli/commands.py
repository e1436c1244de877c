"""The commands."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dni_fx.cli.bench import bench
from dni_fx.cli.check import check
from dni_fx.cli.compare import compare
from dni_fx.cli.defaults import Command
from dni_fx.cli.diff import CONTEXT, diff, show_graphs
from dni_fx.cli.inspect import inspect as inspect_command
from dni_fx.cli.launch import launch
from dni_fx.cli.options import (
    AllOption,
    PlanOptions,
    RewriteOptions,
    Target,
    with_options,
)
from dni_fx.cli.pages import PageWriter, ReportOption, graph
from dni_fx.cli.parsing import default_folder
from dni_fx.cli.progress import note, out, progress
from dni_fx.cli.simulation import plan_on_fake_tensors
from dni_fx.cli.targets import capture
from dni_fx.paths import as_path

if TYPE_CHECKING:
    from dni_fx.plans import Plan

__all__ = ["app"]

app = typer.Typer(
    name="dni-fx",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Cut PyTorch models into segments that train on synthetic gradients.\n\n"
    "Exit codes: 0 success; 1 no legal cut, a failed check, or no measurement; 2 wrong usage or bad input; 3 the model "
    "cannot be loaded or captured; 70 a bug in dni-fx.\n\n"
    "Defaults of options: the table \\[tool.dni-fx] of pyproject.toml, and \\[tool.dni-fx.bench] for one command.",
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print only the plan, as JSON.")]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"dni-fx {version('dni-fx')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  [cyan]dni-fx rewrite examples/mlp.py --cuts 2[/]   "
    "[cyan]dni-fx rewrite net.py:Net --input 32x3x64x64 --cuts every:Block --classes 10 -o out[/]"
)
@with_options(RewriteOptions)
def rewrite(
    target: Target,
    options: RewriteOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write. Default: NAME_dni, for NAME.py.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder if it exists and dni-fx wrote it.")
    ] = False,
    json: JsonOption = False,
    no_diff: Annotated[bool, typer.Option("--no-diff", help="Do not show the graph diff.")] = False,
    all_rows: Annotated[bool, typer.Option("--all", help="Show all rows of long tables, and all lines.")] = False,
    report: ReportOption = None,
) -> None:
    """Rewrite a model, show the plan and the changes, and write the result to a folder.

    The folder holds model.py (generated source), plan.json, weights.safetensors and graph.diff. In Python,
    dni_fx.load(folder) reads it.
    """
    folder = default_folder(target) if output is None else as_path(output, "--output")
    with progress() as show:
        show("starting")
        from dni_fx import compiler, store

        store.check_destination(folder, force=force)
        page = PageWriter(report)
        request = options.request()
        module, plan, _ = capture(target, options.input, request, show)
        page.take_graph(module.graph, plan)
        show("rewriting")
        net = compiler.rewrite(module, plan, request.synthesizer, request.settings)
        show(f"writing {folder}")
        store.save(net, folder, force=force)
        page.write(net.dni.plan, diff=(folder / "graph.diff").read_text(encoding="utf-8"))
    if json:
        typer.echo(net.dni.plan.to_json(), nl=False)
        note(f"wrote {folder}")
        return
    _show_plan(net.dni.plan, whole=all_rows)
    if not no_diff:
        from dni_fx.report import GraphDiff

        out.print()
        changes = GraphDiff.from_text((folder / "graph.diff").read_text(encoding="utf-8"), net.dni.plan)
        show_graphs(changes, None if all_rows else CONTEXT)
    out.print(
        Text.assemble("wrote ", (str(folder), "bold"), ": model.py, plan.json, weights.safetensors, graph.diff"),
        soft_wrap=True,
    )


@app.command(epilog="Example:  [cyan]dni-fx plan net.py --cuts 3 --json > plan.json[/]")
@with_options(PlanOptions)
def plan(
    target: Target,
    options: PlanOptions,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="Run a training step on fake tensors, too, which takes no memory: its memory beside the "
            "predicted one. A model that a class or function makes is made without memory.",
        ),
    ] = False,
    json: JsonOption = False,
    all_rows: AllOption = False,
    report: ReportOption = None,
) -> None:
    """Decide where to cut a model, predict memory and time, and write nothing."""
    with progress() as show:
        show("starting")
        from dni_fx import compiler

        page = PageWriter(report)
        request, simulation = options.request(), None
        if simulate:
            decided, simulation = plan_on_fake_tensors(target, options.input, request, show, page)
        else:
            module, decided, _ = capture(target, options.input, request, show)
            page.take_graph(module.graph, decided)
            if not json or report is not None:  # a rewrite names the synthesizer at each cut
                decided = compiler.rewrite(module, decided, request.synthesizer, request.settings).dni.plan
        page.write(decided)
    if json:
        typer.echo(decided.to_json(), nl=False)
        return
    _show_plan(decided, whole=all_rows)
    if simulation is not None and decided.forecast is not None:
        from dni_fx.bench import simulation_table

        out.print(simulation_table(decided.forecast, simulation))


app.command(epilog="Example:  [cyan]dni-fx check net.py:Net --input 32x3x64x64 --cuts every:Block[/]")(check)
app.command(epilog="Example:  [cyan]dni-fx bench net.py:Net --input 32x3x64x64 --segments 2,auto --plot memory.png[/]")(
    bench
)
app.command(epilog="Example:  [cyan]dni-fx compare net.py --data net.py:batches --cuts 2 --cuts 4[/]")(compare)
app.command(epilog="Example:  [cyan]dni-fx launch net.py --stages 2 --data net.py:batches[/]")(launch)
app.command("inspect", epilog="Example:  [cyan]dni-fx inspect net.py:Net --input 32x3x64x64[/]")(inspect_command)
app.command(epilog="Example:  [cyan]dni-fx graph net.py --cuts 3 -o net.svg[/]")(graph)
app.command(epilog="Examples:  [cyan]dni-fx diff net_dni[/]   [cyan]dni-fx diff net.py plan.json -y[/]")(diff)


@app.command()
def synthesizers() -> None:
    """List the synthesizers that can be chosen by name, and their options with the defaults."""
    from dni_fx.report import add_row, plain_table
    from dni_fx.synthesizers import REGISTRY, options_of

    table = plain_table("", ("name", "options", "description"))
    add_row(
        table,
        "auto",
        "",
        "with a loss: exit; else maps: conv, with a kernel and a pool that keep the share of a step; vectors and "
        "sequences: linear; a cut in time: least_squares, or mlp",
    )
    for name, factory in sorted(REGISTRY.items()):
        options = [f"{option}={value!r}" for option, value in options_of(factory).items() if option != "loss"]
        add_row(table, name, "\n".join(options), (factory.__doc__ or "").strip().split("\n")[0])
    out.print(table)


def _show_plan(decided: "Plan", *, whole: bool) -> None:
    from dni_fx.report import plan_table

    out.print(plan_table(decided, whole=whole))


for _command in app.registered_commands:  # typer would keep the line breaks inside of a paragraph
    _paragraphs = (inspect.getdoc(_command.callback) or "").split("\n\n")
    _command.cls = Command
    _command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in _paragraphs)
