"""The memory of a training step to a few percent, by running it on fake tensors, which have shapes and no values."""

import copy
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from dni_fx.bench.live_bytes import training_peak
from dni_fx.bench.options import Options, target_for
from dni_fx.bench.ways import backprop, context_for, labels_for, prepared
from dni_fx.errors import DniFxError, first_line
from dni_fx.forecasts import Forecast
from dni_fx.model import Inputs, any_fake, fake_mode
from dni_fx.report import add_row, allocated, plain_table
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import Loss, loss_function
from dni_fx.units import bytes_text

__all__ = ["Simulation", "simulate", "simulation_table"]


@dataclass(frozen=True)
class Simulation:
    """The most bytes alive at once that a step allocates, with the optimizer Adam.

    Attributes:
        backprop: Of the plain model.
        cut: Of the rewritten net.
    """

    backprop: int
    cut: int


def simulate(model: nn.Module, net: DecoupledModule, inputs: Inputs, loss: str | Loss | None = None) -> Simulation:
    """Run a training step of the model and of the rewritten net on fake tensors.

    Args:
        model: The module that the net was made from; it may be fake already.
        loss: The training loss; None: the mean square of the outputs.

    Raises:
        DniFxError: If a step looks at values, which fake tensors do not have.
    """
    mode = fake_mode([*model.parameters()])
    function = None if loss is None else loss_function(loss)
    try:
        inputs = inputs.map(lambda tensor: tensor if any_fake([tensor]) else mode.from_tensor(tensor.detach()))
        return Simulation(*(_peak(_faked(one, mode), inputs, function, mode) for one in (model, net)))
    except DniFxError:
        raise
    except Exception as error:  # the person's code may raise any error
        raise DniFxError(f"the step does not run on fake tensors, without values: {first_line(error)}") from None


def _faked(net: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy with fake parameters and buffers; a fake net itself."""
    if any_fake(net.parameters()):
        return net
    with FakeCopyMode(mode):
        return copy.deepcopy(net)


def _peak(net: nn.Module, inputs: Inputs, loss: Loss | None, mode: FakeTensorMode) -> int:
    with mode:
        classes = net.dni.rewrite.classes if isinstance(net, DecoupledModule) else None
        options, target = Options(), labels_for(inputs, classes)
        if loss is not None:
            with torch.no_grad():
                target = target_for(loss, net.eval()(*inputs.args, **inputs.kwargs))
            options = Options(loss=lambda output: loss(output, target))
        kwargs = inputs.kwargs | context_for(net, target)
        trainee = prepared(backprop(net, Inputs(inputs.args, kwargs), options))
        trainee.net.zero_grad()
        return training_peak(trainee.step, net.parameters()).peak


def simulation_table(forecast: Forecast, simulation: Simulation) -> Table:
    """What a step allocates: the predictions of the cost model, and the simulation."""
    numbers = ("backprop", "cut", "ratio")
    table = plain_table("allocated by the step", ("", *numbers), right=numbers)
    predicted = allocated(forecast, forecast.backprop), allocated(forecast, forecast.cut)
    for name, (before, after) in {
        "predicted": predicted,
        "simulated": (simulation.backprop, simulation.cut),
    }.items():
        add_row(table, name, bytes_text(before), bytes_text(after), f"{after / max(before, 1):.2f}")
    return table
