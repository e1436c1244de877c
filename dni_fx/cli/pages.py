"""The option `--report` of several commands, and the command `graph`."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dni_fx.cli.options import PlanOptions, Target, with_options
from dni_fx.cli.progress import note, progress
from dni_fx.cli.targets import capture
from dni_fx.errors import DniFxError
from dni_fx.paths import as_path, kind_of

if TYPE_CHECKING:
    from torch import fx, nn

    from dni_fx.bench import Options, Row
    from dni_fx.comparison import Comparison
    from dni_fx.model import Inputs
    from dni_fx.plans import Plan
    from dni_fx.proof import Report

__all__ = ["PageWriter", "ReportOption", "graph"]

ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report", help="Write a web page with the graph and these results: an .html file.", show_default=False
    ),
]


class PageWriter:
    """Writes the page that `--report` names, if the option is given.

    Raises:
        DniFxError: If no page can be written there.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = None if path is None else as_path(path, "--report")
        if self.path is not None:
            if self.path.suffix not in (".html", ".htm"):
                raise DniFxError(f"cannot write a report to {self.path}: give an .html file")
            _check_place(self.path)
        self.nodes: tuple[Any, ...] = ()

    def take_graph(self, graph: "fx.Graph", plan: "Plan") -> None:
        """Keep the nodes of a graph: a rewrite changes the graph."""
        if self.path is not None:
            from dni_fx.page import nodes_of

            self.nodes = nodes_of(graph, plan)

    def write(self, plan: "Plan", diff: str = "", checked: "Report | None" = None, rows: "Sequence[Row]" = ()) -> None:
        """Write the page."""
        if self.path is None:
            return
        from dni_fx import page
        from dni_fx.bench import bench_verdict, to_dict
        from dni_fx.report import plan_verdict

        verdict = [checked.verdict] if checked is not None else bench_verdict(rows) if rows else plan_verdict(plan)
        self._write(
            plan,
            verdict,
            diff=diff,
            checks=tuple(checked.to_dict()["checks"]) if checked is not None else (),
            bench=tuple(to_dict(row) for row in rows),
            memory=tuple(page.Series(row.name, tuple(map(float, row.trace))) for row in rows if row.trace),
        )

    def _write(self, plan: "Plan", verdict: Sequence[str], **parts: Any) -> None:
        from dni_fx import page

        assert self.path is not None
        title = f"{plan.model}: {len(plan.segments)} segments"
        page.write_page(self.path, page.Page(title, plan, self.nodes, tuple(verdict), **parts))
        note(f"wrote {self.path}")

    def write_comparison(self, result: "Comparison") -> None:
        """Write the page of `compare`: the graph has the cuts of the best way; none if no way was cut."""
        from dni_fx import comparison, page

        best = comparison.best_cut(result)
        if self.path is None or best is None:
            return
        net = result.nets[best.name]
        plan = net.dni.plan
        self.take_graph(net.graph, plan)

        def chart(drawn: "comparison.Curves") -> page.Chart:
            lines = (page.Series(name, tuple(y), tuple(x)) for name, (x, y) in drawn.lines.items())
            return page.Chart(drawn.title, drawn.x_label, tuple(lines))

        charts = tuple(map(chart, comparison.curves(result)))
        self._write(plan, comparison.verdict(result), figures=tuple(comparison.figures(result)), curves=charts)

    def write_bench(self, model: "nn.Module", example: "Inputs", options: "Options", rows: "Sequence[Row]") -> None:
        """Write the page of `bench`: the graph has the cuts of the first row that was measured, or of "auto"."""
        measured = [name for name in options.cuts if any(row.name == name and not row.failed for row in rows)]
        if self.path is None or not measured:
            return
        from dni_fx.cuts import Limits
        from dni_fx.planning import Request, capture_and_plan

        cuts = options.cuts["auto" if "auto" in measured else measured[0]]
        limits = Limits(share=9.0) if isinstance(cuts, int) else Limits()  # as in the rows
        request = Request(
            cuts,
            options.synthesizer,
            options.settings,
            limits,
            frontend=options.frontend,
            verify=False,
            state=options.state,
        )
        with contextlib.redirect_stdout(sys.stderr):
            module, plan = capture_and_plan(model, example, request)
        self.take_graph(module.graph, plan)
        self.write(plan, rows=rows)


def _check_place(path: Path) -> None:
    if kind_of(path) == "folder" or kind_of(path.parent) != "folder":
        raise DniFxError(f"cannot write {path}: give a file in a folder that exists")


@with_options(PlanOptions)
def graph(
    target: Target,
    options: PlanOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: a .svg, .png, .dot or .json.", show_default=False)
    ],
    model_explorer: Annotated[
        Path | None,
        typer.Option(
            help="Write the segment of each node, too: a .json of node data, which Model Explorer lays over the "
            "exported model. The names fit with --frontend export.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw the graph of a model with its segments and cuts.

    A .dot and a .json need nothing else; a .svg and a .png need the program dot of graphviz.
    """
    with progress() as show:
        show("starting")
        from dni_fx import page

        output = as_path(output, "--output")
        page.check_picture(output)
        _check_place(output)
        if model_explorer is not None:
            model_explorer = as_path(model_explorer, "--model-explorer")
            if model_explorer.suffix != ".json":
                raise DniFxError(f"cannot write node data to {model_explorer}: give a .json")
            _check_place(model_explorer)
        module, plan, _ = capture(target, options.input, options.request(), show)
        show(f"writing {output}")
        nodes = page.nodes_of(module.graph, plan)
        page.write_picture(output, plan, nodes)
        if model_explorer is not None:
            page.write_node_data(model_explorer, nodes)
    note(f"wrote {output}" + (f" and {model_explorer}" if model_explorer is not None else ""))
