"""The command `inspect`: what the compiler sees of a model before it cuts, or what a saved plan or folder holds."""

import contextlib
import json as json_format
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dni_fx.cli.options import AllOption, FrontendOption, InputOption, NoVerifyOption, ProfileOption, with_options
from dni_fx.cli.progress import ShowStage, out, progress
from dni_fx.cli.saved import inspect_saved
from dni_fx.cli.targets import load_target
from dni_fx.paths import as_path, kind_of

if TYPE_CHECKING:
    from dni_fx.cli.inspection import Inspection

__all__ = ["inspect"]


@with_options()
def inspect(
    target: Annotated[
        str,
        typer.Argument(help="As for `dni-fx rewrite`, or a folder that it wrote, or a plan.json.", show_default=False),
    ],
    input: InputOption = None,
    frontend: FrontendOption = "auto",
    profile: ProfileOption = False,
    no_verify: NoVerifyOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print only what was found, as JSON.")] = False,
    all_rows: AllOption = False,
) -> None:
    """Show what the compiler sees of a model before it cuts: its front end, and the places where it can be cut.

    Of a written folder or a plan.json, show what it holds; no code in the folder runs. If the model has no place for a
    cut, the exit code is 1.
    """
    with progress() as show:
        show("starting")
        path = as_path(target, "TARGET")
        if target.endswith(".json") or kind_of(path) == "folder":
            view, data = inspect_saved(path)
            no_cut = ""
        else:
            from dni_fx.cli.inspection import inspection_view

            found = _inspected(target, input, frontend, show, profile=profile, verify=not no_verify)
            view, data, no_cut = inspection_view(found, whole=all_rows), asdict(found), found.no_cut
    if json:
        typer.echo(json_format.dumps(data, indent=2))
    else:
        out.print(view)
    if no_cut:
        raise typer.Exit(1)


def _inspected(
    target: str, specs: list[str] | None, frontend: str, show: ShowStage, *, profile: bool, verify: bool
) -> "Inspection":
    from dni_fx.capture import capture, check_frontend
    from dni_fx.cli.inspection import inspection

    check_frontend(frontend)
    model, example = load_target(target, specs, show)
    show("capturing")
    with contextlib.redirect_stdout(sys.stderr):
        captured = capture(model, example, frontend, compare=verify)
        show("looking for places to cut")
        return inspection(model, example, captured, profile=profile)
