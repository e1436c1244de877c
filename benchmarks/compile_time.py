"""Seconds to trace and to rewrite against the size of the graph, beside torch.fx.symbolic_trace alone.

    python benchmarks/compile_time.py            # writes benchmarks/results/compile_time.md; --largest N for less

The model is a chain of residual blocks, five nodes a block; a tenth of the blocks is cut after. "trace" is the tracer
alone, "compare" what proves the capture, "annotate" shapes and costs, "plan" the choice of the cuts, "rewrite" the
passes that put them in. Best of three runs.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from dni_fx.capture.annotate import annotate
from dni_fx.capture.by_fx import capture_by_fx
from dni_fx.capture.verify import verify
from dni_fx.compiler import rewrite
from dni_fx.cuts.decide import decide
from dni_fx.cuts.plan import make_plan
from dni_fx.graph.flow import dataflow
from dni_fx.model.inputs import Inputs

RESULTS = Path(__file__).parent / "results" / "compile_time.md"
T = TypeVar("T")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(width, width), nn.Linear(width, width), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.first(x))))


def timed(function: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def stages(blocks: int) -> dict[str, float]:
    """Seconds of each stage for a model of that many blocks."""
    model = nn.Sequential(*(Block(4) for _ in range(blocks)))
    inputs = Inputs((torch.rand(3, 4),))
    seconds: dict[str, Any] = {}
    seconds["symbolic_trace"], plain = timed(lambda: fx.symbolic_trace(model))
    seconds["nodes"] = len(plain.graph.nodes)
    seconds["trace"], module = timed(lambda: capture_by_fx(model, inputs))
    seconds["compare"], _ = timed(lambda: verify(model, module, inputs))
    seconds["annotate"], _ = timed(lambda: annotate(module, inputs))
    cuts = [str(i) for i in range(9, blocks - 1, 10)]

    def plan() -> Any:
        chosen, why = decide(module.graph, dataflow(module.graph), cuts)
        return make_plan("Sequential", module.graph, chosen, why, (), "benchmark")

    seconds["plan"], decided = timed(plan)
    settings: dict[str, Any] = {"unlock": "backward", "mix": 0.0, "classes": None, "context_size": None}
    seconds["rewrite"], _ = timed(lambda: rewrite(module, decided, synthesizer="linear", **settings))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=20_000, help="nodes of the largest graph")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("symbolic_trace", "trace", "compare", "annotate", "plan", "rewrite")
    lines = [
        "# Time to compile",
        "",
        f"`python benchmarks/compile_time.py`, torch {torch.__version__}, one thread; seconds, best of three.",
        "",
        f"| nodes | {' | '.join(columns)} | rewrite / trace |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for nodes in (100, 300, 1_000, 3_000, 10_000, 20_000):
        if nodes > arguments.largest:
            break
        runs = [stages(nodes // 5) for _ in range(3)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        share = best["rewrite"] / best["trace"]
        lines.append(f"| {best['nodes']} | {' | '.join(f'{best[c]:.3f}' for c in columns)} | {share:.2f} |")
        print(lines[-1], flush=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
