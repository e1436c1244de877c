"""Which settings train synthesizers best: the experiment behind the defaults of `dni_fx.Training`.

Run:  python benchmarks/synthesizer_training.py      writes benchmarks/results/synthesizer_training.md

The paper's MNIST networks of 4 and 6 layers, with a cut after each hidden layer.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paper_feedforward as paper
import runs
import torch

from dni_fx import Training

RESULTS = Path(__file__).parent / "results" / "synthesizer_training.md"
LAYERS = (4, 6)
CDNI = paper.LABELS | {"synthesizer": "linear"}
MEAN = 1 / paper.BATCH  # of per-sample gradients: what a mean loss gives
SETTINGS: dict[str, dict[str, Any]] = {
    "the defaults": CDNI,
    "scale 1/256 (the mean loss's gradient)": CDNI | {"training": Training(scale=MEAN)},
    "scale 1/256, lr 0.01": CDNI | {"training": Training(scale=MEAN, lr=0.01)},
    "scale rms": CDNI | {"training": Training(scale="rms")},
    "scale rms, lr 10": CDNI | {"training": Training(scale="rms", lr=10.0)},
    "lr 0.3": CDNI | {"training": Training(lr=0.3)},
    "lr 3": CDNI | {"training": Training(lr=3.0)},
    "clip 1": CDNI | {"training": Training(clip=1.0)},
    "clip 0.1": CDNI | {"training": Training(clip=0.1)},
    "warmup 200": CDNI | {"training": Training(warmup=200)},
    "every 2": CDNI | {"training": Training(every=2)},
    "every 5": CDNI | {"training": Training(every=5)},
    "mix 0.5": CDNI | {"unlock": "none", "mix": 0.5},
    "mix 1 to 0": CDNI | {"unlock": "none", "mix": (1.0, 0.0, 1000)},
    "mlp": paper.LABELS | {"synthesizer": "mlp"},
    "no labels, scale 1": {"synthesizer": "linear", "training": Training(scale=1.0)},
    "no labels, mlp, scale 1": {"synthesizer": "mlp", "training": Training(scale=1.0)},
    "no labels, scale 1/256": {"synthesizer": "linear", "training": Training(scale=MEAN)},
    "no labels, scale 1/16 (the default)": {"synthesizer": "linear", "training": Training()},
    "no labels, scale rms": {"synthesizer": "linear", "training": Training(scale="rms")},
    "no labels, scale 1, clip 1": {"synthesizer": "linear", "training": Training(scale=1.0, clip=1.0)},
    "no labels, scale 1, warmup 200": {"synthesizer": "linear", "training": Training(scale=1.0, warmup=200)},
    "no labels, scale 1, lr 0.3": {"synthesizer": "linear", "training": Training(scale=1.0, lr=0.3)},
    "no labels, mlp, scale 1/256": {"synthesizer": "mlp", "training": Training(scale=MEAN)},
    "guided_head, pull 0.1": paper.LOSS | {"synthesizer": "guided_head(pull=0.1)"},
    "guided_head, pull 1": paper.LOSS | {"synthesizer": "guided_head"},
    "guided_head, pull 10": paper.LOSS | {"synthesizer": "guided_head(pull=10.0)"},
    "guided_head, no hidden layer": paper.LOSS | {"synthesizer": "guided_head(hidden_layers=0)"},
    "guided_head, 64 hidden units": paper.LOSS | {"synthesizer": "guided_head(hidden_size=64)"},
}


def error(job: tuple[str, int, int, int]) -> float:
    """Test error in percent."""
    name, layers, seed, steps = job
    digits = paper.common.load_digits()
    torch.manual_seed(seed)
    net = paper.fcn(layers)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    options = SETTINGS[name]
    cut = paper.transformed(net, digits.train_x[: paper.BATCH], options | {"optimizer": optimizer})
    torch.manual_seed(seed + 100)
    result = paper.fit(cut, optimizer, None, digits, steps, paper.BATCH, "classes" in options)
    return float(result["error"])


def report(arguments: argparse.Namespace) -> Iterator[str]:
    found = runs.errors_by_setting(error, itertools.product(SETTINGS, LAYERS), arguments)
    yield "# How synthesizers are trained\n"
    yield f"`python benchmarks/synthesizer_training.py --steps {arguments.steps} --seeds {arguments.seeds}`, torch"
    yield f"{torch.__version__}. MNIST, hidden layers of 256 with batch norm, a cut after each; batch {paper.BATCH},"
    yield "Adam 1e-3 for everything; linear synthesizers with labels, but where the settings say another. Test error in"
    yield "percent, of each seed.\n"
    yield "| settings | " + " | ".join(f"{layers} layers" for layers in LAYERS) + " |"
    yield "|---|" + "---|" * len(LAYERS)
    for name in SETTINGS:
        yield f"| {name} | " + " | ".join(found[name, layers] for layers in LAYERS) + " |"


if __name__ == "__main__":
    runs.measure(__doc__, RESULTS, report, steps=2000, seeds=1, workers=runs.CORES)
