"""Does it learn: the paper's MNIST network with a cut after every hidden layer, beside backprop and beside nothing.

Run:  python benchmarks/learning.py
"Nothing" is the control: the same cuts with synthesizers that stay at zero, so that only the last layer trains.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dni_fx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import common
import mlp

CUTS = ["relu", "relu_1", "relu_2"]


class Zero(dni_fx.Synthesizer):
    """Predicts no gradient, for ever."""

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(activation)


def error(options: dict[str, object] | None, digits: common.Digits, steps: int, seed: int) -> float:
    """Test error in percent; `options` are those of `dni_fx.transform`, None is backprop."""
    torch.manual_seed(seed)
    net: nn.Module = mlp.MLP(digits.side**2)
    if options is not None:
        net = dni_fx.transform(net, digits.train_x[:64], cuts=CUTS, **options)  # type: ignore[arg-type]
    torch.manual_seed(seed + 100)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(digits.train_y), (256,))
        x, y = digits.train_x[rows], digits.train_y[rows]
        context = {"dni_context": y} if options and "classes" in options else {}
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, **context), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return common.error_percent(digits)(net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits = common.load_digits()
    print(f"torch {torch.__version__}, {digits.name}, {arguments.steps} steps of batch 256, Adam 1e-3, 4 segments\n")
    print("| trained with | " + " | ".join(f"seed {s}, error %" for s in range(arguments.seeds)) + " |")
    print("|---|" + "---|" * arguments.seeds)
    rows: dict[str, dict[str, object] | None] = {
        "backprop": None,
        "synthesizers with labels (`classes=10`)": {"classes": 10},
        "synthesizers without labels": {},
        "nothing below the last cut (control)": {"synthesizer": Zero},
    }
    for name, options in rows.items():
        errors = [f"{error(options, digits, arguments.steps, s):.2f}" for s in range(arguments.seeds)]
        print(f"| {name} | " + " | ".join(errors) + " |", flush=True)


if __name__ == "__main__":
    main()
