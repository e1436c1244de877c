"""Rewrite and check architectures that others wrote: trace, plan, transform, one training step, `check`.

    pip install transformers monai einops dnc   # and those of zoo_more.py
    python benchmarks/zoo.py             # writes benchmarks/results/zoo.md; --only PATTERN for some of them

Everything is built from configuration, nothing is downloaded. A model passes if all of `dni_fx.check` holds.
"""

import argparse
import contextlib
import fnmatch
import importlib
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from zoo_models import models as larger_packages
from zoo_more import MORE

import dni_fx
from dni_fx.errors import DniFxError

RESULTS = Path(__file__).parent / "results" / "zoo.md"
LIMIT = 300  # seconds for one model


def models() -> dict[str, Callable[[], tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]]:
    """Builders of each model and its inputs, by name."""
    return larger_packages() | MORE


@dataclass
class Row:
    """The result for one model."""

    name: str
    outcome: str  # passed, refused, failed
    frontend: str = ""
    nodes: int = 0
    segments: int = 0
    transform: float = 0.0  # seconds
    check: float = 0.0
    why: str = ""  # the failed checks, or why an earlier front end was ruled out


def examine(name: str) -> Row:
    """Rewrite one model, train it for a step, and check it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LIMIT)
    try:
        try:
            model, args, kwargs = models()[name]()
        except ImportError as error:
            return Row(name, "not installed", why=str(error).split("\n")[0])
        start = time.perf_counter()
        net = dni_fx.transform(model, args, cuts=2, example_kwargs=kwargs)
        middle = time.perf_counter()
        _step(net, args, kwargs)
        report = dni_fx.check(net, args, example_kwargs=kwargs)
        end = time.perf_counter()
    except DniFxError as error:
        return Row(name, "refused", why=" ".join(str(error).split()))
    except Exception as error:
        return Row(name, "failed", why=f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        signal.alarm(0)
    plan = net.dni.plan
    nodes = sum(len(segment.nodes) for segment in plan.segments)
    wrong = "; ".join(f"{c.name}: {c.figure}" for c in report.checks if not c.passed)
    row = Row(name, "passed" if report else "failed", plan.frontend, nodes, len(plan.segments))
    row.transform, row.check, row.why = middle - start, end - middle, wrong or "; ".join(plan.tried)
    return row


def apart(name: str) -> Row:
    """`examine` in a process of its own, which may crash."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(examine(name)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Row(name, "failed", why=f"the process ended with code {process.exitcode}")
    finally:
        process.join()


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def _step(net: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    leaves = torch.utils._pytree.tree_leaves(net.train()(*args, **kwargs))
    sum(t.abs().mean() for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad).backward()  # type: ignore[union-attr]
    optimizer.step()


def table(rows: list[Row]) -> str:
    """The results as Markdown."""
    counts = Counter(row.outcome for row in rows)
    used = Counter(row.frontend for row in rows if row.outcome == "passed")
    lines = [
        "# Architectures that others wrote",
        "",
        f'`python benchmarks/zoo.py`, torch {torch.__version__}, one thread a model, `cuts=2`, `frontend="auto"`.',
        "",
        f"{len(rows)} models: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())} "
        f"({100 * counts['passed'] / len(rows):.1f} % pass). "
        f"Front ends of those that pass: {', '.join(f'{name} {n}' for name, n in used.most_common())}.",
        "",
        "| model | outcome | front end | nodes | segments | transform s | check s | what failed, or why not earlier |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        why = row.why.replace("|", "\\|")
        why = why if len(why) < 240 else why[:237] + "..."
        figures = f"{row.nodes} | {row.segments} | {row.transform:.2f} | {row.check:.2f}"
        lines.append(f"| {row.name} | {row.outcome} | {row.frontend} | {figures} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="models to run, as in 'transformers/*'")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for package in ("transformers", "monai.networks.nets"):  # once, before the processes part
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    names = [name for name in models() if fnmatch.fnmatch(name, arguments.only)]
    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(apart, names):
            seconds = f"{row.transform:6.1f} {row.check:6.1f}"
            print(f"{row.name:40} {row.outcome:8} {row.frontend:8} {seconds}  {row.why[:300]}", flush=True)
            rows.append(row)
            arguments.output.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
