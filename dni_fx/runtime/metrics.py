"""Write the metrics of the synthesizers to a TensorBoard writer, or call a function with them, while a model trains."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError
from dni_fx.model import tensors_in
from dni_fx.runtime.module import DecoupledModule, rewritten

__all__ = ["Writer", "log_metrics"]

Metrics = dict[str, dict[str, float]]  # of each crossing, by name
LogFunction = Callable[[int, Metrics], object]


class Writer(Protocol):
    """The method of `torch.utils.tensorboard.SummaryWriter` that is used, and that other writers have, too."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


def log_metrics(net: DecoupledModule, to: Writer | LogFunction, every: int = 100) -> RemovableHandle:
    """Report `net.dni.metrics()` after the backward pass of one in so many training steps.

    The metrics are those of the last step that was measured.

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
    return net.register_forward_hook(_PostForward(log, every))


def _to_writer(add_scalar: Callable[[str, float, int], object]) -> LogFunction:
    def log(step: int, metrics: Metrics) -> None:
        for crossing, values in metrics.items():
            for name, value in values.items():
                add_scalar(f"dni/{crossing}/{name}", value, step)

    return log


class _PostForward:
    """Calls `log` once in so many steps. A copy of the net logs nothing: a writer would mix the numbers of both."""

    def __init__(self, log: LogFunction, every: int) -> None:
        self.log, self.every = log, every
        self.logged = 0  # the step of the last report

    def __call__(self, net: DecoupledModule, _inputs: Any, output: Any) -> None:
        if not (net.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        # The steps of the crossings are right in a resumed run, too.
        step = max((crossing.steps for crossing in net.dni.crossings.values()), default=0)
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if not (step and step % self.every == 0 and outputs):
            return

        def report() -> None:
            if self.logged != step:  # two losses may have a backward pass each
                self.logged = step
                self.log(step, net.dni.metrics())

        engine: Any = Variable._execution_engine
        torch.autograd.graph.register_multi_grad_hook(outputs, lambda _: engine.queue_callback(report), mode="any")

    def __deepcopy__(self, memo: dict[int, Any]) -> "_PostForward":
        return _PostForward(lambda _step, _metrics: None, self.every)
