"""Seconds to trace and to rewrite against the size of the graph, beside torch.fx.symbolic_trace alone.

Run:  python benchmarks/compile_time.py       writes benchmarks/results/compile_time.md

The model is a chain of residual blocks, five nodes a block, with a cut after every tenth block. "trace" is the tracer
alone, "compare" the check that the capture is the same network, "annotate" finds shapes and costs, "plan" checks and
prices the cuts, "rewrite" runs the passes that put them in. Best of three runs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import runs
import torch
from torch import Tensor, fx, nn

from dni_fx.capture.annotate import annotate
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.eager import Eager
from dni_fx.capture.verify import verify
from dni_fx.compiler import rewrite
from dni_fx.cost import OPTIMIZER_STATES, CostModel, resident, synthesizer_prices
from dni_fx.cuts import Limits, decide, make_plan
from dni_fx.graph import dataflow
from dni_fx.model import Inputs
from dni_fx.plans import Plan
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import DEFAULTS

RESULTS = Path(__file__).parent / "results" / "compile_time.md"
NODES = (100, 300, 1_000, 3_000, 10_000, 20_000)
COLUMNS = ("symbolic_trace", "trace", "compare", "annotate", "plan", "rewrite")


class Block(nn.Module):
    """Two linear layers beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(width, width), nn.Linear(width, width), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.first(x))))


def stages(blocks: int) -> dict[str, float]:
    """Seconds of each stage for a model of that many blocks."""
    model = nn.Sequential(*(Block(4) for _ in range(blocks)))
    inputs = Inputs((torch.rand(3, 4),))
    cuts = [str(i) for i in range(9, blocks - 1, 10)]
    seconds: dict[str, float] = {}
    seconds["symbolic_trace"], plain = runs.timed(lambda: fx.symbolic_trace(model))
    seconds["nodes"] = len(plain.graph.nodes)
    seconds["trace"], module = runs.timed(lambda: capture_by_fx(model, inputs))
    seconds["compare"], _ = runs.timed(lambda: verify(Eager(model, inputs), module))
    seconds["annotate"], _ = runs.timed(lambda: annotate(module, inputs))
    seconds["plan"], plan = runs.timed(lambda: plan_cuts(module, inputs, cuts))
    seconds["rewrite"], _ = runs.timed(lambda: rewrite(module, plan, "linear"))
    return seconds


def plan_cuts(module: DecoupledModule, inputs: Inputs, cuts: list[str]) -> Plan:
    """The plan for `cuts` of a captured, annotated module."""
    prices, refused = synthesizer_prices(module.graph, "linear", DEFAULTS)
    always = resident(module, inputs, OPTIMIZER_STATES)
    cost_model = CostModel(dataflow(module.graph), prices, always, refused=refused)
    decision = decide(module.graph, cost_model, cuts, Limits())
    return make_plan("Sequential", module.graph, cost_model, decision, (), "benchmark")


def report(arguments: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    yield "# Time to compile\n"
    yield f"`python benchmarks/compile_time.py`, torch {torch.__version__}, one thread; seconds, best of three.\n"
    yield f"| nodes | {' | '.join(COLUMNS)} | rewrite / trace |"
    yield f"|{'---|' * (len(COLUMNS) + 2)}"
    for nodes in (n for n in NODES if n <= arguments.largest):
        turns = [stages(nodes // 5) for _ in range(3)]
        best = {name: min(turn[name] for turn in turns) for name in turns[0]}
        share = best["rewrite"] / best["trace"]
        yield f"| {best['nodes']} | {' | '.join(f'{best[c]:.3f}' for c in COLUMNS)} | {share:.2f} |"


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, largest=20_000)
