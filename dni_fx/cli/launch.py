"""The command `launch`: train a model in a pipeline of processes. It starts itself again in each of them."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from dni_fx.cli.options import ClassesOption, FrontendOption, SynthesizerOption, Target, with_options
from dni_fx.cli.parsing import parse_cuts
from dni_fx.cli.progress import note, out, progress
from dni_fx.cli.targets import batches_of, load_model, named
from dni_fx.errors import DniFxError, PeerError
from dni_fx.paths import as_path

if TYPE_CHECKING:
    from dni_fx.pipeline import Trained

__all__ = ["launch"]

_LINES = 10  # of progress in a run, at least
_SILENCE = 10.0  # seconds after a line, after which there is one more
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # else processes that restart find the addresses of those before
_FIRST = 5.0  # seconds for the first process to report an error that all have, which ends the others


@with_options()
def launch(
    target: Target,
    data: Annotated[
        str,
        typer.Option(
            help="The batches, FILE.py:NAME, as for `dni-fx compare`: an iterable of (inputs, target), or a function "
            "that returns one. Each process draws all of them.",
            show_default=False,
        ),
    ],
    stages: Annotated[int, typer.Option(help="The number of processes, with a stage of the model each.")] = 2,
    steps: Annotated[int, typer.Option(help="Training steps, each on a batch.")] = 200,
    microbatches: Annotated[int, typer.Option(help="The parts of a batch. Each stage updates after each part.")] = 4,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync",
            help="Update once a step, after all gradients have come: the results of the cut net in one process.",
        ),
    ] = False,
    cuts: Annotated[
        str | None,
        typer.Option(
            help="Where to cut, as for `dni-fx rewrite`; with more segments than stages, a stage has several. Default: "
            "so many segments, of equal time.",
            show_default=False,
        ),
    ] = None,
    speeds: Annotated[
        str | None,
        typer.Option(
            help="The speeds of the machines of the stages beside each other, as in 1,0.5: cut for these.",
            show_default=False,
        ),
    ] = None,
    synthesizer: SynthesizerOption = "auto",
    classes: ClassesOption = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="The loss: a name in torch.nn.functional, or FILE.py:NAME, a function of (outputs, target). Default: "
            "as for `dni-fx compare`.",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:NAME, a function that makes an optimizer from parameters. Default: Adam.", show_default=False
        ),
    ] = None,
    frontend: FrontendOption = "auto",
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="The folder of checkpoints; the run goes on from the last complete one there.", show_default=False
        ),
    ] = None,
    every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 100,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds for which a process waits for another one; a first batch that compiles takes long."),
    ] = 60,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the trained net to this folder, as `rewrite` does.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the torchrun command, and do not run it.")] = False,
) -> None:
    """Train a model in several processes, each with a stage of it, by torchrun.

    It prints the torchrun command and runs it. With --max-restarts 3 before -m in that command, all processes start
    again from the last checkpoint when one fails. To train on several machines, run the command on each, with --nnodes,
    --rdzv-backend c10d and --rdzv-endpoint HOST:PORT in place of --standalone, and the number of processes of a machine
    after --nproc-per-node.
    """
    if ":" not in data:
        raise DniFxError(f"--data {data}: FILE.py:NAME")
    from dni_fx import store
    from dni_fx.pipeline import Run

    rewrite: dict[str, Any] = {"frontend": frontend}
    rewrite |= {} if synthesizer == "auto" else {"synthesizer": synthesizer}
    rewrite |= {} if classes is None else {"classes": classes}
    rewrite |= {} if cuts is None else {"cuts": parse_cuts(cuts)}
    rewrite |= {} if speeds is None else {"speeds": _speeds(speeds, None if cuts is not None else stages)}
    if output is not None:
        output = as_path(output, "--output")
        store.check_destination(output, force=False)
    if checkpoints is not None and checkpoints.exists() and not checkpoints.is_dir():
        raise DniFxError(f"--checkpoints {checkpoints}: it is a file; give a folder")
    run = Run(
        stages, steps, microbatches, sync, loss, rewrite=rewrite, folder=checkpoints, every=every, timeout=timeout
    )
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        with _alone_in(None if dry_run else checkpoints):
            _start(stages, dry_run=dry_run)
        return
    _end_with_launcher()
    try:
        if loss is not None and ":" in loss:
            run = replace(run, loss=named(loss))
        if optimizer is not None:
            run = replace(run, optimizer=named(optimizer))
        _train(target, data, run, output)
    except DniFxError:
        if os.environ.get("RANK") != "0":
            time.sleep(_FIRST)
        raise


@contextlib.contextmanager
def _alone_in(folder: Path | None) -> Iterator[None]:
    """Raise a DniFxError if another run has the folder of checkpoints."""
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise DniFxError(f"--checkpoints {folder}: another run writes to it") from None


def _end_with_launcher() -> None:
    """End this process when that of torchrun is gone, which else ends it."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watches torchrun", daemon=True).start()


def _start(stages: int, *, dry_run: bool) -> None:
    """Run this command again in each process."""
    process = ["-m", "dni_fx", *sys.argv[1:]]
    options = ["--standalone", "--nproc-per-node", str(stages), *process]
    out.print(Text(f"{_OWN_STORE}=1 torchrun {shlex.join(options)}"), soft_wrap=True)
    if dry_run:
        return
    os.environ[_OWN_STORE] = "1"
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // stages)))  # else torchrun warns
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise PeerError(f"the process of stage {failure.local_rank} was ended by {name}") from None
        raise typer.Exit(failure.exitcode or 1) from None  # the process has said why
    except SignalException:
        raise KeyboardInterrupt from None


def _speeds(text: str, count: int | None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise DniFxError(f"--speeds {text}: numbers with commas, as in 1,0.5") from None
    if count is not None and len(found) != count:
        raise DniFxError(f"--speeds {text}: {len(found)} numbers for --stages {count}")
    return found


def _train(target: str, data: str, run: Any, output: Path | None) -> None:
    import torch.distributed as dist

    from dni_fx import store
    from dni_fx.model import seed
    from dni_fx.pipeline import latest, train

    with contextlib.redirect_stdout(sys.stderr), progress() as show:
        dist.init_process_group("gloo")
        seed(run.seed)
        model = load_model(target, show)
        batches = batches_of(data)

    last = time.monotonic()

    def shown(step: int, loss: float) -> None:
        nonlocal last
        if step % max(1, run.steps // _LINES) == 0 or time.monotonic() > last + _SILENCE:
            note(f"step {step}: loss {loss:.4g}")
            last = time.monotonic()

    if dist.get_rank() == 0 and run.folder is not None and (path := latest(run.folder)) is not None:
        note(f"goes on from {path}")

    with contextlib.redirect_stdout(sys.stderr):
        trained = train(model, batches, run, shown)
        if dist.get_rank() == run.stages - 1 and output is not None:
            store.save(trained.net, output)
    dist.destroy_process_group()
    if trained.metrics:
        _show(trained, run)
        if output is not None:
            out.print(Text.assemble("wrote ", (str(output), "bold")))


def _show(trained: "Trained", run: Any) -> None:
    from dni_fx.report import add_row, plain_table
    from dni_fx.units import bytes_text

    if trained.losses:
        loss = f"loss {trained.losses[-1]:.4g} of step {run.steps}, before its updates"
        out.print(f"{loss}; {trained.samples:,.0f} samples a second")
    out.print(f"cut after {', '.join(trained.ends)}")
    table = plain_table("", ("stage", "updates", "time waited", "sent up", "sent down", "gradients", "mean age"))
    for index, one in enumerate(trained.metrics):
        late = "gradients" in one and not run.sync
        learned = (str(one["gradients"]), f"{one['mean_age']:.1f}") if late else ("", "")
        sent = bytes_text(one["bytes_up"]), bytes_text(one["bytes_down"])
        add_row(table, str(index), f"{one['updates']:,}", f"{100 * one['waited']:.0f} %", *sent, *learned)
    out.print(table)
