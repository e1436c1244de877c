"""Write how well the synthesizers predict to a TensorBoard writer, or hand it to a function, while a model trains."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from dni_fx.errors import DniFxError
from dni_fx.runtime.module import DecoupledModule

__all__ = ["Writer", "log_metrics"]

Report = Callable[[int, dict[str, dict[str, float]]], object]


class Writer(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter` has, and others have too."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


def log_metrics(net: DecoupledModule, to: Writer | Report, every: int = 100) -> RemovableHandle:
    """Report `net.dni.metrics()` at every so many training steps; its own numbers are as fresh as it says.

    Args:
        net: What `dni_fx.transform` returned.
        to: A writer, which gets each number as `dni/<crossing>/<metric>`; or a function of step and metrics.
        every: Steps from one report to the next.

    Returns:
        A handle, whose `remove()` ends it.

    Raises:
        DniFxError: If an argument is wrong.
    """
    if not isinstance(net, DecoupledModule) or not hasattr(net, "dni"):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
    if not isinstance(every, int) or every < 1:
        raise DniFxError(f"every={every!r}: a number of steps, 1 or more")
    report: Any = _scalars(to.add_scalar) if hasattr(to, "add_scalar") else to
    if not callable(report):
        raise DniFxError("expected a writer with add_scalar, or a function of step and metrics")
    return net.register_forward_pre_hook(_Log(report, every))


def _scalars(write: Callable[..., object]) -> Report:
    def report(step: int, metrics: dict[str, dict[str, float]]) -> None:
        for crossing, values in metrics.items():
            for name, value in values.items():
                write(f"dni/{crossing}/{name}", value, step)

    return report


class _Log:
    """Looks at the steps. A copy of the net is silent: writers cannot be copied, and would mix the two."""

    def __init__(self, report: Report, every: int) -> None:
        self.report, self.every = report, every

    def __call__(self, net: Any, _inputs: Any) -> None:
        if not (net.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        step = max((crossing.steps for crossing in net.dni.crossings.values()), default=0)  # of a resumed run, too
        if step and step % self.every == 0:
            self.report(step, net.dni.metrics())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Log":
        return _Log(lambda _step, _metrics: None, self.every)
