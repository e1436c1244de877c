"""The command `check`."""

import contextlib
import sys
from json import dumps
from typing import Annotated

import typer

from dni_fx.cli.options import RewriteOptions, with_options
from dni_fx.cli.pages import PageWriter, ReportOption
from dni_fx.cli.progress import out, progress
from dni_fx.cli.targets import capture, load_saved
from dni_fx.paths import as_path, is_file

__all__ = ["check"]


@with_options(RewriteOptions)
def check(
    target: Annotated[
        str, typer.Argument(help="As for `dni-fx rewrite`, or a folder that it wrote.", show_default=False)
    ],
    options: RewriteOptions,
    json: Annotated[bool, typer.Option("--json", help="Print only the report, as JSON.")] = False,
    report: ReportOption = None,
) -> None:
    """Prove that the rewrite of a model is the same network, decoupled.

    Compares outputs, gradients, buffers, keys of the state_dict, and the saved and loaded net. If a check fails, the
    exit code is 1.
    """
    with progress() as show:
        show("starting")
        from dni_fx import compiler, proof

        page = PageWriter(report)
        folder = as_path(target, "TARGET")
        if is_file(folder / "plan.json"):
            show(f"reading {target}")
            net, example = load_saved(folder, options.input)
            page.take_graph(net.graph, net.dni.plan)
        else:
            request = options.request()
            module, plan, example = capture(target, options.input, request, show)
            page.take_graph(module.graph, plan)
            net = compiler.rewrite(module, plan, request.synthesizer, request.settings)
        show("checking")
        with contextlib.redirect_stdout(sys.stderr):
            found = proof.check(net, example)
    if json:
        typer.echo(dumps(found.to_dict(), indent=2))
    else:
        out.print(proof.check_table(net.dni.plan, found))
    page.write(net.dni.plan, checked=found)
    if not found:
        raise typer.Exit(1)
