"""Write the metrics of the synthesizers to a TensorBoard writer, or call a function with them, while a model trains."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError
from dni_fx.runtime.module import DecoupledModule, rewritten

__all__ = ["Writer", "log_metrics"]

Metrics = dict[str, dict[str, float]]  # of each crossing, by name
LogFunction = Callable[[int, Metrics], object]


class Writer(Protocol):
    """The method of `torch.utils.tensorboard.SummaryWriter` that is used, and that other writers have, too."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


def log_metrics(net: DecoupledModule, to: Writer | LogFunction, every: int = 100) -> RemovableHandle:
    """Report `net.dni.metrics()` once in so many training steps; the metrics are those of the last step measured.

    Args:
        net: What `dni_fx.transform` returned.
        to: A writer, whose `add_scalar` gets each number as `dni/<crossing>/<metric>`; or a function of step and
            metrics.
        every: Steps from one report to the next.

    Returns:
        A handle, whose `remove()` ends the reports.

    Raises:
        DniFxError: If an argument is wrong.
    """
    net = rewritten(net)
    check_arguments({"every": every})
    log: Any = _to_writer(to.add_scalar) if hasattr(to, "add_scalar") else to
    if not callable(log):
        raise DniFxError("expected a writer with add_scalar, or a function of step and metrics")
    return net.register_forward_pre_hook(_PreForward(log, every))


def _to_writer(add_scalar: Callable[[str, float, int], object]) -> LogFunction:
    def log(step: int, metrics: Metrics) -> None:
        for crossing, values in metrics.items():
            for name, value in values.items():
                add_scalar(f"dni/{crossing}/{name}", value, step)

    return log


class _PreForward:
    """Calls `log` once in so many steps. A copy of the net logs nothing: a writer would mix the numbers of both."""

    def __init__(self, log: LogFunction, every: int) -> None:
        self.log, self.every = log, every

    def __call__(self, net: DecoupledModule, _inputs: Any) -> None:
        if not (net.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        step = max(
            (crossing.steps for crossing in net.dni.crossings.values()), default=0
        )  # right in a resumed run, too
        if step and step % self.every == 0:
            self.log(step, net.dni.metrics())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_PreForward":
        return _PreForward(lambda _step, _metrics: None, self.every)
