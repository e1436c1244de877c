"""Memory and time of a training step on a GPU: as `memory.py`, by the GPU's allocator and its own clock.

Run:  python benchmarks/gpu.py                  writes benchmarks/results/gpu.md and .json
      python benchmarks/gpu.py --nets resnet50   some of them
Without a CUDA device, prints that and measures nothing.
"""

import argparse
import json
import sys
from pathlib import Path

import memory
import torch

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(memory.NETS), choices=list(memory.NETS))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA device; nothing was measured")
        return
    device = torch.cuda.get_device_name()
    lines = [
        "# Memory and time of a training step on a GPU",
        "",
        f"`python benchmarks/gpu.py`, {device}, torch {torch.__version__}; the CPU: [memory.md](memory.md).",
        "",
    ]
    found = {}
    for name in arguments.nets:
        try:
            section = memory.run(name, arguments.steps, "cuda")
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        found[name] = section
        lines += [f"## {section['title']}", "", "```", section["table"].rstrip(), "```", ""]
        (RESULTS / "gpu.json").write_text(json.dumps({"device": device, "nets": found}, indent=1) + "\n")
        (RESULTS / "gpu.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
