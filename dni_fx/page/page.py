"""Write the page: the data as JSON, the libraries, and the code that draws, in one file of HTML."""

import html
import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dni_fx.forecasts import most_in_parts
from dni_fx.json_data import finite
from dni_fx.page.nodes import GraphNode
from dni_fx.plans import ExitPlan, Plan, crossing_name
from dni_fx.report import exit_text
from dni_fx.store import beside, errors_of_writing, real_path

__all__ = ["Chart", "Page", "Series", "graph_data", "write_page"]

_POINTS = 400  # of a curve of memory


@dataclass(frozen=True)
class Series:
    """A curve: without `x`, the values are at equal distances from 0 to 1."""

    name: str
    y: tuple[float, ...]
    x: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Curves on the same axes, such as the losses of several runs."""

    title: str
    x_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Page:
    """What a page shows; a part that is empty is left out.

    Attributes:
        verdict: Sentences at the top.
        diff: The text of a graph diff.
        checks: The properties of `dni_fx.check`: name, passed, figure.
        figures: The rows of a table of results, each the texts of its cells by column.
        bench: The rows of `dni_fx.bench`, as its `to_dict` makes them.
        memory: The measured bytes alive over the step, by way to train; empty: those that the plan predicts.
    """

    title: str
    plan: Plan
    nodes: tuple[GraphNode, ...]
    verdict: tuple[str, ...] = ()
    diff: str = ""
    checks: tuple[Mapping[str, Any], ...] = ()
    figures: tuple[Mapping[str, str], ...] = ()
    bench: tuple[Mapping[str, Any], ...] = ()
    memory: tuple[Series, ...] = ()
    curves: tuple[Chart, ...] = ()


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all, in the place of a file that is there.

    Raises:
        DniFxError: If the file cannot be written.
    """
    path = real_path(path)
    text = _text(page)
    with errors_of_writing(path), beside(path) as new:
        new.write_text(text, encoding="utf-8")
        new.replace(path)


def graph_data(plan: Plan, nodes: tuple[GraphNode, ...]) -> dict[str, Any]:
    """The graph and its cuts as plain data."""
    names = plan.rewrite.synthesizers if plan.rewrite else {}
    return {
        "model": plan.model,
        "unit": plan.forecast.unit if plan.forecast is not None else "FLOPs",
        "segments": [{k: v for k, v in asdict(segment).items() if k != "nodes"} for segment in plan.segments],
        "cuts": [
            {
                "after": cut.after,
                "tensors": [
                    {"node": t.node, "shape": t.shape, "dtype": t.dtype, "bytes": t.bytes} for t in cut.tensors
                ],
                "synthesizers": sorted({names.get(crossing_name(k, t.node), "") for t in cut.predicted} - {""}),
                "exit": None if cut.exit is None else _exit_data(cut.exit),
            }
            for k, cut in enumerate(plan.cuts)
        ],
        "nodes": [asdict(node) for node in nodes],
    }


def _exit_data(planned: ExitPlan) -> dict[str, Any]:
    units = () if planned.unit is None else planned.unit.nodes
    return {"text": exit_text(planned), "nodes": (*units, *planned.nodes), "flops": planned.flops}


def _text(page: Page) -> str:
    """The page as text: data cannot end a script, since JSON spells `<` as an escape."""
    data = json.dumps(finite(_data(page)), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        name.replace("-", "_").split(".")[0]: (files("dni_fx.page") / "vendor" / name).read_text(encoding="utf-8")
        for name in ("cytoscape.min.js", "elk-api.js", "elk-worker.min.js", "uPlot.iife.min.js")
    }
    own = files("dni_fx.page") / "files"
    style = (files("dni_fx.page") / "vendor" / "uPlot.min.css").read_text(encoding="utf-8")
    style += (own / "page.css").read_text(encoding="utf-8")
    code = {
        name: (own / f"{name}.js").read_text(encoding="utf-8")
        for name in ("texts", "layout", "model", "controls", "graph", "page")
    }
    template = string.Template((own / "page.html").read_text(encoding="utf-8"))
    return template.substitute(parts | code, title=html.escape(page.title), style=style, data=data)


def _data(page: Page) -> dict[str, Any]:
    plan = page.plan
    return {
        "title": page.title,
        "facts": [
            f"front end {plan.frontend}",
            f"inputs {'; '.join(plan.inputs) or 'none'} ({plan.inputs_from})",
            *([f"cuts: {plan.why}"] if plan.cuts or plan.states else []),  # else the verdict says why
        ],
        "verdict": page.verdict,
        "graph": graph_data(plan, page.nodes),
        "memory": {
            "measured": bool(page.memory),
            "series": [
                {"name": one.name, "y": most_in_parts(one.y, _POINTS)} for one in page.memory or _predicted(plan)
            ],
        },
        "diff": page.diff,
        "checks": page.checks,
        "figures": page.figures,
        "bench": page.bench,
        "curves": [asdict(chart) for chart in page.curves],
    }


def _predicted(plan: Plan) -> list[Series]:
    """The bytes that a step allocates over its time, by the plan: with backprop, and with the cuts."""
    if plan.forecast is None:
        return []
    found = [("backprop", plan.forecast.backprop), (f"{len(plan.segments)} segments", plan.forecast.cut)]
    return [Series(name, tuple(map(float, outlook.over_step))) for name, outlook in found if outlook.over_step]
