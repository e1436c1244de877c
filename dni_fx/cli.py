"""The command line. stdout is the result, stderr the progress; torch is imported when a command needs it."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dni_fx.errors import DniFxError, SourceError

if TYPE_CHECKING:
    from torch import nn

    from dni_fx.api import Request
    from dni_fx.bench import Options as BenchOptions
    from dni_fx.bench import Row
    from dni_fx.cutting import Cuts
    from dni_fx.inputs import Inputs
    from dni_fx.module import DecoupledModule
    from dni_fx.planning import Plan

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
out = Console(soft_wrap=False)
err = Console(stderr=True)


def main() -> None:
    """Entry point: every error becomes one line on stderr and an exit code."""
    try:
        app()
    except DniFxError as error:
        err.print(f"[bold red]error:[/] {_escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
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


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _version(value: bool) -> None:
    if value:
        from dni_fx import __version__

        typer.echo(f"dni-fx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Target = Annotated[
    str,
    typer.Argument(
        help="path/to/model.py, path/to/model.py:attr or package.module:attr; attr is a module, or a class or function "
        "without arguments that makes one. The file is imported, which runs it.",
        show_default=False,
    ),
]
CutsOption = Annotated[
    str,
    typer.Option(
        "--cuts",
        help="auto, a number of segments, names to cut after (layer2,add_7), every:Block, leaves (every layer that "
        "trains), marked (where the code says dni_fx.cut_after()), or a plan.json to repeat.",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Example input, one for each argument: [name=]SHAPE[:DTYPE[:LOW-HIGH]], batch first, as in 64x784 or "
        "ids=8x128:int64:0-1000 (HIGH not included). Else `example_inputs` in the file, else shapes are tried.",
        show_default=False,
    ),
]
SynthesizerOption = Annotated[str, typer.Option(help="auto, or a name that `dni-fx synthesizers` lists.")]
UnlockOption = Annotated[str, typer.Option(help="Which locks are removed: backward or none.")]
MixOption = Annotated[
    str, typer.Option(help="Share of the true gradient, BP(lambda), or START:END:STEPS; needs --unlock none.")
]
LossOption = Annotated[
    str | None,
    typer.Option(
        help="The training loss in torch.nn.functional, as cross_entropy; needs --classes.", show_default=False
    ),
]
ClassesOption = Annotated[
    int | None, typer.Option(help="Condition the synthesizers on so many labels.", show_default=False)
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="What chosen cuts make least, with a charge for each synthesizer. "
        "memory: the peak of a training step; throughput: the time of the slowest "
        "segment with its synthesizers, each on a device of its own; balanced: the time of the heaviest one alone."
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--memory-budget", help="The fewest segments found whose predicted peak fits, as in 2GiB.", show_default=False
    ),
]
ShareOption = Annotated[
    float | None,
    typer.Option(
        "--synthesizer-share",
        help="What the synthesizers may take of the time of backprop's step. Default: 0.05, or 1.5 of the least.",
        show_default=False,
    ),
]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Measure times on real tensors; else count FLOPs.")]
FrontendOption = Annotated[
    str,
    typer.Option(
        help="What captures the model: fx, export, modules, or auto: the first that proves to be the same network."
    ),
]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the capture with the eager model: for models too big.")
]
StateOption = Annotated[
    str | None,
    typer.Option(
        help="Cut a recurrent model in time: auto for forward(x, state) -> (y, state), or NAME=OUTPUT, the argument "
        "that is its state, and the place or key of the output that it becomes.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout, and nothing else.")]


@app.command(
    epilog="Examples:  [cyan]dni-fx rewrite examples/mlp.py --cuts auto[/]   "
    "[cyan]dni-fx rewrite net.py:Net --input 32x3x64x64 --cuts every:Block --classes 10 -o out[/]"
)
def rewrite(
    target: Target,
    cuts: CutsOption = "auto",
    input: InputOption = None,
    synthesizer: SynthesizerOption = "auto",
    unlock: UnlockOption = "backward",
    mix: MixOption = "0",
    classes: ClassesOption = None,
    loss: LossOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: NAME_dni here.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder, if dni-fx wrote it.")] = False,
    objective: ObjectiveOption = "memory",
    memory_budget: BudgetOption = None,
    synthesizer_share: ShareOption = None,
    profile: ProfileOption = False,
    frontend: FrontendOption = "auto",
    no_verify: NoVerifyOption = False,
    state: StateOption = None,
    json: JsonOption = False,
    no_diff: Annotated[bool, typer.Option("--no-diff", help="Leave the graph diff out.")] = False,
) -> None:
    """Rewrite a model, show what changed, and write it to a folder.

    The folder holds model.py (generated source), plan.json, weights.safetensors and graph.diff; read it with
    dni_fx.load(folder).
    """
    folder = output or Path(f"{_name(target)}_dni")
    with _progress() as step:
        step("starting")
        from dni_fx import api, artifact
        from dni_fx.settings import Settings, check_settings, loss_function, parse_mix
        from dni_fx.states import parse_state
        from dni_fx.synthesizers import resolve

        artifact.check_destination(folder, force=force)
        settings = Settings(unlock, parse_mix(mix), classes, loss=loss)
        check_settings(settings)
        resolve(synthesizer, (), -1, None if loss is None else loss_function(loss))
        limits = api.limits_of(objective, memory_budget, synthesizer_share)
        request = api.Request(
            _cuts(cuts), synthesizer, settings, limits, profile, frontend, not no_verify, parse_state(state)
        )
        module, plan, _ = _captured(target, input, request, step)
        step("rewriting")
        net = api.rewrite(module, plan, synthesizer, settings)
        step(f"writing {folder}")
        artifact.save(net, folder, force=force)
    if json:
        typer.echo(net.dni.plan.to_json(), nl=False)
        err.print(f"wrote {folder}", highlight=False)
        return
    _show_plan(net.dni.plan)
    if not no_diff:
        from dni_fx.diffing import paint

        out.print()
        out.print(paint((folder / "graph.diff").read_text(encoding="utf-8")), soft_wrap=True)
    out.print(
        f"wrote [bold]{_escape(str(folder))}[/]: model.py, plan.json, weights.safetensors, graph.diff", soft_wrap=True
    )


@app.command(epilog="Example:  [cyan]dni-fx plan net.py --cuts 3 --json > plan.json[/]")
def plan(
    target: Target,
    cuts: CutsOption = "auto",
    input: InputOption = None,
    synthesizer: SynthesizerOption = "auto",
    classes: ClassesOption = None,
    loss: LossOption = None,
    objective: ObjectiveOption = "memory",
    memory_budget: BudgetOption = None,
    synthesizer_share: ShareOption = None,
    profile: ProfileOption = False,
    frontend: FrontendOption = "auto",
    no_verify: NoVerifyOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Decide where to cut, and write nothing."""
    with _progress() as step:
        step("starting")
        from dni_fx import api
        from dni_fx.settings import Settings, check_settings, loss_function
        from dni_fx.states import parse_state
        from dni_fx.synthesizers import resolve

        settings = Settings(classes=classes, loss=loss)
        check_settings(settings)
        resolve(synthesizer, (), -1, None if loss is None else loss_function(loss))
        limits = api.limits_of(objective, memory_budget, synthesizer_share)
        request = api.Request(
            _cuts(cuts), synthesizer, settings, limits, profile, frontend, not no_verify, parse_state(state)
        )
        _, decided, _ = _captured(target, input, request, step)
    if json:
        typer.echo(decided.to_json(), nl=False)
    else:
        _show_plan(decided)


@app.command(epilog="Example:  [cyan]dni-fx check net.py:Net --input 32x3x64x64 --cuts every:Block[/]")
def check(
    target: Annotated[str, typer.Argument(help="As for rewrite, or a folder that it wrote.", show_default=False)],
    cuts: CutsOption = "auto",
    input: InputOption = None,
    synthesizer: SynthesizerOption = "auto",
    unlock: UnlockOption = "backward",
    mix: MixOption = "0",
    classes: ClassesOption = None,
    loss: LossOption = None,
    objective: ObjectiveOption = "memory",
    memory_budget: BudgetOption = None,
    synthesizer_share: ShareOption = None,
    profile: ProfileOption = False,
    frontend: FrontendOption = "auto",
    no_verify: NoVerifyOption = False,
    state: StateOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Prove that the rewrite of a model is the same network, decoupled; exit code 1 if it is not."""
    with _progress() as step:
        step("starting")
        from dni_fx import api, artifact, checking, inputs
        from dni_fx.settings import Settings, check_settings, parse_mix
        from dni_fx.states import parse_state

        if Path(target, "plan.json").is_file():
            step(f"reading {target}")
            try:
                net = artifact.load(target)
            except SourceError:
                raise DniFxError(
                    f"{target} needs the model that it was made from: dni-fx check model.py --cuts {target}"
                ) from None
            example = inputs.parse_specs(input) if input else inputs.like(net.dni.plan.inputs)
        else:
            settings = Settings(unlock, parse_mix(mix), classes, loss=loss)
            check_settings(settings)
            limits = api.limits_of(objective, memory_budget, synthesizer_share)
            request = api.Request(
                _cuts(cuts), synthesizer, settings, limits, profile, frontend, not no_verify, parse_state(state)
            )
            module, plan, example = _captured(target, input, request, step)
            net = api.rewrite(module, plan, synthesizer, settings)
        step("checking")
        with contextlib.redirect_stdout(sys.stderr):
            report = checking.check(net, example)
    if json:
        typer.echo(dumps(report.to_dict(), indent=2))
    else:
        from dni_fx.report import check_report

        out.print(check_report(net.dni.plan, report))
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
    with _progress() as step:
        step("starting")
        from dni_fx import bench as benching
        from dni_fx import bench_report
        from dni_fx.settings import Settings, check_settings
        from dni_fx.synthesizers import resolve

        options = benching.Options(
            cuts=benching.parse_segments(segments), steps=steps, synthesizer=synthesizer, classes=classes
        )
        resolve(synthesizer, (), -1, None)
        check_settings(Settings(classes=classes))
        if plot is not None:
            bench_report.check_plot(plot)
        model, example = _loaded(target, input, step)
    rows = []
    try:
        for row in _measuring(model, example, options):
            rows.append(row)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    if not rows:
        raise typer.Exit(130)
    if json:
        typer.echo(dumps([bench_report.to_dict(row) for row in rows], indent=2))
    else:
        out.print(bench_report.bench_table(rows))
    if plot is not None:
        bench_report.plot(rows, plot)
        err.print(f"wrote {plot}", highlight=False)
    if interrupted:
        raise typer.Exit(130)
    ours = [row for row in rows if any(row.name.startswith(name) for name in options.cuts)]
    if all(row.failed for row in ours):
        raise typer.Exit(1)


def _measuring(model: "nn.Module", example: "Inputs", options: "BenchOptions") -> "Iterator[Row]":
    """Measure, with a bar that shows how far it is."""
    from dni_fx import bench as benching

    ways = ["backprop", *(name for name, _ in benching.ways(options))]
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=len(ways))

        def show(name: str) -> None:
            bar.update(task, description=name, completed=ways.index(name))

        with contextlib.redirect_stdout(sys.stderr):
            yield from benching.bench(model, example, options, show)


@app.command()
def diff(folder: Annotated[Path, typer.Argument(help="A folder that `dni-fx rewrite` wrote.")]) -> None:
    """Show again what a rewrite changed."""
    from dni_fx.diffing import paint

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


# --------------------------------------------------------------------------------------------- steps
def _captured(
    target: str, specs: list[str] | None, request: "Request", step: "Step"
) -> "tuple[DecoupledModule, Plan, Inputs]":
    from dni_fx import api, frontends

    frontends.check_frontend(request.frontend)
    model, example = _loaded(target, specs, step)
    with contextlib.redirect_stdout(sys.stderr):
        step("capturing, and comparing the capture with the model" if request.verify else "capturing")
        return *api.captured(model, example, request), example


def _loaded(target: str, specs: list[str] | None, step: "Step") -> "tuple[nn.Module, Inputs]":
    """The model and its example inputs."""
    from dni_fx import api, inputs, loading

    given = inputs.parse_specs(specs) if specs else None
    with contextlib.redirect_stdout(sys.stderr):  # what the person's code prints
        step(f"loading {target}")
        model, beside = loading.load_target(target)
        step("looking for example inputs")
        example = given or beside or api.example_inputs_of(model, None, None)
        if not given and beside is None:
            err.print(f"no example inputs given: {'; '.join(inputs.describe(example))} fits", highlight=False)
        return model, example


def _cuts(text: str) -> "Cuts":
    """What `--cuts` means."""
    from dni_fx.planning import Plan

    if text.endswith(".json") or Path(text, "plan.json").is_file():
        return Plan.load(text)
    if text in ("auto", "marked", "leaves") or text.startswith("every:"):
        return text
    try:
        return int(text)
    except ValueError:
        return [name.strip() for name in text.split(",") if name.strip()]


def _name(target: str) -> str:
    path = target.split(":")[0]
    return Path(path).stem if path.endswith(".py") else path.rsplit(".", 1)[-1]


def _show_plan(decided: "Plan") -> None:
    from dni_fx.report import plan_report

    out.print(plan_report(decided))


class Step:
    """Says what is going on; silent where stderr is no terminal."""

    def __init__(self, status: "object | None") -> None:
        self.status = status

    def __call__(self, what: str) -> None:
        if self.status is not None:
            self.status.update(what)  # type: ignore[attr-defined]


@contextmanager
def _progress() -> Iterator[Step]:
    if not err.is_terminal:
        yield Step(None)
        return
    with err.status("starting") as status:
        yield Step(status)


if __name__ == "__main__":
    main()
