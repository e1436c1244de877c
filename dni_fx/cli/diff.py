"""The command `diff`."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dni_fx.cli.defaults import is_from_file
from dni_fx.cli.options import InputOption, with_options
from dni_fx.cli.progress import ShowStage, note, out, progress
from dni_fx.cli.targets import load_target
from dni_fx.errors import DniFxError, first_line
from dni_fx.paths import as_path, is_file, kind_of

if TYPE_CHECKING:
    from dni_fx.plans import Plan
    from dni_fx.report import GraphDiff, Line
    from dni_fx.runtime import DecoupledModule

__all__ = ["CONTEXT", "diff", "show_graphs"]

CONTEXT = 3  # lines around each change
NONE = "no differences"

_WHAT = "a model (path/to/model.py[:NAME] or package.module:NAME), a folder that `dni-fx rewrite` wrote, or a plan.json"


@dataclass(frozen=True)
class _Side:
    """An argument of the command, and its kind: "target", "folder" or "plan"."""

    text: str
    kind: str

    @classmethod
    def of(cls, text: str) -> "_Side":
        """Find out what an argument is.

        Raises:
            DniFxError: If it is nothing that can be compared.
        """
        path = as_path(text, "diff")
        if kind_of(path) == "folder":
            return cls(text, "folder")
        if path.suffix == ".json":
            return cls(text, "plan")
        if is_file(path) and path.suffix != ".py":
            raise DniFxError(f"{text} cannot be compared: give {_WHAT}")
        if path.suffix != ".py" and ":" not in text:
            raise DniFxError(f"no such file or folder: {text}; give {_WHAT}")
        return cls(text, "target")

    def plan(self) -> "Plan":
        from dni_fx.plans import Plan

        return Plan.load(as_path(self.text))

    def stored(self) -> "GraphDiff":
        """The diff that a folder holds.

        Raises:
            DniFxError: If the folder holds none.
        """
        from dni_fx.report import GraphDiff
        from dni_fx.store import has_saved_files

        folder = as_path(self.text)
        if not is_file(folder / "graph.diff"):
            raise DniFxError(f"{folder} is no folder that dni-fx wrote: it holds no graph.diff")
        try:
            text = (folder / "graph.diff").read_text(encoding="utf-8")
            found = GraphDiff.from_text(text, self.plan() if is_file(folder / "plan.json") else None)
        except (OSError, ValueError) as error:
            raise DniFxError(f"cannot read {folder / 'graph.diff'}: {first_line(error)}") from None
        if is_file(folder / "plan.json"):
            try:
                has_saved_files(folder)
            except DniFxError as error:  # the diff may be of interest all the same
                note(f"warning: {error}")
        return found


@with_options()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=f"{_WHAT[0].upper()}{_WHAT[1:]}.", show_default=False)],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="What to compare A with. Default: the model before A was cut.", show_default=False
        ),
    ] = None,
    input: InputOption = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", "-y", help="Show both graphs in two columns, as wide as the terminal.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show the numbers of lines by segment and cut, and what each cut adds.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(min=0, help="Unchanged lines to show around each change. Default: 3.", show_default=False),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Show all lines.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all lines, as JSON.")] = False,
) -> None:
    """Compare two of a model, a saved folder and a plan; or show what the rewrite in one folder changed.

    Graphs are compared line by line; at the right end of a line is the line of the model's code that it comes from. A
    model and a plan: what the plan would change. Two plans, or a folder and a plan: the fields that differ.

    The exit code is 0, with and without differences.
    """
    if side_by_side + summary + json > 1:
        raise DniFxError("--side-by-side, --summary and --json exclude each other")
    if whole and context is not None:
        if not is_from_file("whole", "context"):
            raise DniFxError("--all and --context exclude each other")
        whole = not is_from_file("whole")
    sides = [_Side.of(text) for text in (a, b) if text is not None]
    kinds = [side.kind for side in sides]
    if input and "target" not in kinds and not is_from_file("input"):
        raise DniFxError("--input is for a model, and no side is one: leave it out")
    if b is None and sides[0].kind != "folder":
        other = "a folder or a plan.json" if sides[0].kind == "target" else "the model, a folder or a second plan.json"
        raise DniFxError(f"{a} alone cannot be compared: give a second side, {other}")
    if "plan" in kinds and "target" not in kinds:
        if side_by_side or summary:
            raise DniFxError("--side-by-side and --summary are for graphs, and these are plans: leave them out")
        _show_plans(sides[0], sides[1], json=json)
        return
    with progress() as show:
        show("starting")
        found = sides[0].stored() if b is None else _compared(sides[0], sides[1], input, show)
    if json:
        typer.echo(dumps([asdict(line) for line in found.lines], indent=2))
        return
    if not found.changed and kinds == ["folder", "folder"] and _changes(sides[0], sides[1]):
        plans = f"{as_path(sides[0].text) / 'plan.json'} {as_path(sides[1].text) / 'plan.json'}"
        out.print(f"{NONE} in the code, but in the plans: dni-fx diff {plans}", soft_wrap=True)
    elif summary and found.changed:
        out.print(found.summary())
    else:
        around = None if whole else CONTEXT if context is None else context
        show_graphs(found, around, [side.text for side in sides], side_by_side=side_by_side)


def show_graphs(
    found: "GraphDiff", context: int | None, names: Sequence[str] = (), *, side_by_side: bool = False
) -> None:
    """Print the differences of two graphs.

    Args:
        context: The number of unchanged lines around each change; None: all lines.
        names: The names of both sides, if there are two.
    """
    if not found.changed:
        out.print(NONE)
        return
    shown = found if context is None else found.folded(context)
    if side_by_side:
        out.print(shown.side_by_side(*(names if len(names) == 2 else ())))
    else:
        for sign, name in zip("-+", names if len(names) == 2 else (), strict=False):
            out.print(Text(f"{sign * 3} {name}", "bold"), soft_wrap=True)
        out.print(shown, soft_wrap=True)
    out.print(Text(f"lines: {', '.join(f'{number} {kind}' for kind, number in found.counts.items())}"))


def _changes(before: _Side, after: _Side) -> "list[tuple[str, str, str]]":
    from dni_fx.report import plan_changes

    return plan_changes(before.plan(), after.plan())


def _show_plans(before: _Side, after: _Side, *, json: bool) -> None:
    from dni_fx.report import plan_diff_table

    changes = _changes(before, after)
    if json:
        typer.echo(
            dumps([dict(zip(("field", "before", "after"), change, strict=True)) for change in changes], indent=2)
        )
    else:
        out.print(plan_diff_table(changes, before.text, after.text) if changes else NONE)


def _compared(before: _Side, after: _Side, specs: list[str] | None, show: ShowStage) -> "GraphDiff":
    """The differences of two graphs, of which a plan is what it makes of the model on the other side."""
    from dni_fx.report import compare_lines, lines_of

    sides = (before, after)
    plans = [None if side.kind == "target" else side.plan() for side in sides]
    plan = plans[1] or plans[0]
    targets = [side.text for side in sides if side.kind == "target"]
    modules = _captured(targets, specs, plan, show)
    captured = [lines_of(module) for module in modules]  # before a rewrite changes one
    lines: list[Sequence[Line]] = []
    for side in sides:
        if side.kind == "plan":
            show("rewriting")
            net = _rewritten(modules[0], side.plan())
            plan = net.dni.plan
            lines.append(lines_of(net))
        else:
            lines.append(side.stored().after if side.kind == "folder" else captured.pop(0))
    return compare_lines(lines[0], lines[1], plan)


def _captured(
    targets: Sequence[str], specs: list[str] | None, plan: "Plan | None", show: ShowStage
) -> "list[DecoupledModule]":
    """The captures of some models by one front end: that of the plan, or else the first that takes all of them."""
    from dni_fx.arguments import FRONTENDS
    from dni_fx.capture import capture

    frontend, in_depth = ("auto", False) if plan is None else (plan.frontend, bool(plan.cuts))
    loaded = [load_target(target, specs, show) for target in targets]
    with contextlib.redirect_stdout(sys.stderr):
        found = []
        for target, one in zip(targets, loaded, strict=True):
            show(f"capturing {target}")
            found.append(capture(*one, frontend, in_depth=in_depth))
        last = max((one.frontend for one in found), key=FRONTENDS.index, default=frontend)
        return [
            (one if one.frontend == last else capture(*pair, last, compare=False, in_depth=in_depth)).module
            for one, pair in zip(found, loaded, strict=True)
        ]


def _rewritten(module: "DecoupledModule", plan: "Plan") -> "DecoupledModule":
    """The module as the plan cuts it; a plan that was no rewrite yet gets the default settings.

    Raises:
        DniFxError: If the plan is of another graph.
    """
    from dataclasses import replace

    from dni_fx import compiler
    from dni_fx.cuts import check_graph
    from dni_fx.settings import DEFAULTS

    check_graph(module, plan)
    net = compiler.rewrite(module, plan, settings=DEFAULTS if plan.rewrite is None else plan.rewrite.settings)
    if plan.rewrite is not None:
        net.dni.plan = replace(net.dni.plan, rewrite=plan.rewrite)
    return net
