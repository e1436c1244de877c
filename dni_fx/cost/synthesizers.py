"""The cost of a synthesizer at every tensor that may cross a cut: build the synthesizer, and run it without data."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from dni_fx.cost.times import seconds
from dni_fx.errors import DniFxError, first_line
from dni_fx.graph import Saving, flop_counter, record_of
from dni_fx.settings import Settings, loss_function
from dni_fx.synthesizers import Activation, Factory, LossHead, make_synthesizer, resolve

__all__ = ["Price", "synthesizer_prices"]

FLOPS_PER_BYTE = 10.0  # to move a byte between processes takes as long: a few GB/s, beside tens of GFLOP/s


@dataclass(frozen=True)
class Price:
    """The costs of the synthesizer of one tensor."""

    parameter_bytes: int
    time: float  # of a prediction and of its backward pass: FLOPs, or measured seconds
    bytes: int  # of the tensor, and of its prediction, its gradient and its target
    transfer: float  # time to send the tensor to another process
    kept: int  # bytes that autograd keeps until the target is there, without the tensor itself


def synthesizer_prices(
    graph: fx.Graph,
    synthesizer: str | Factory,
    settings: Settings,
    *,
    measure: bool = False,
    dense: bool = False,
) -> tuple[dict[str, Price], dict[str, str]]:
    """Find the price of a synthesizer for every node of an annotated graph whose value may cross a cut.

    Args:
        settings: The context and the loss of the synthesizers.
        dense: As `dni_fx.synthesizers.resolve` takes it.
        measure: Measure seconds on real tensors, in place of FLOPs.

    Returns:
        The prices by node; and for nodes that can have no synthesizer, the reason.
    """
    known: dict[Activation, Price | str] = {}
    prices: dict[str, Price] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        record = record_of(node)
        if not (record.carries_gradient and record.shape and record.dtype and record.dtype.is_floating_point):
            continue
        axis = record.axis % len(record.shape)
        device = record.device if measure and record.device is not None else torch.device("meta")
        activation = Activation(record.shape, record.dtype, device, axis)
        if activation not in known:
            known[activation] = _price(activation, synthesizer, settings, dense=dense)
        price = known[activation]
        if isinstance(price, Price):
            prices[node.name] = price
        else:
            refused[node.name] = price
    return prices, refused


def _price(
    activation: Activation, synthesizer: str | Factory, settings: Settings, *, dense: bool = False
) -> Price | str:
    """The price, or the reason why there is no such synthesizer for this activation.

    A synthesizer that needs values does not run on the device meta: then it runs on zeros, on the CPU.
    """
    reason = ""
    loss = None if settings.loss is None else loss_function(settings.loss)
    name, factory = resolve(synthesizer, activation.shape, activation.axis, loss, dense=dense)
    for device in dict.fromkeys((activation.device, torch.device("cpu"))):
        try:
            with torch.random.fork_rng(devices=[]):
                return _measured(replace(activation, device=device), factory, settings, activation.device)
        except DniFxError as error:
            return str(error)
        except Exception as error:  # the user's factory or module may raise anything
            reason = first_line(error)
    return f"synthesizer {name} does not run on a tensor of shape {list(activation.shape)}: {reason}"


def _measured(activation: Activation, factory: Factory, settings: Settings, device: torch.device) -> Price:
    """Build a synthesizer and run it: count its FLOPs or, unless `device` is meta, measure its time."""
    with activation.device:
        module = make_synthesizer(factory, activation, settings.size)
        h, context = example(activation, settings, module)
    parameters = list(module.parameters())
    counter = flop_counter()
    saving = Saving([*parameters, h])
    with counter, saving:
        prediction = module(h, context)
        if not isinstance(prediction, Tensor) or prediction.shape != h.shape:
            returned = list(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
            name = type(module).__name__
            raise DniFxError(f"synthesizer {name} returned {returned} for an activation of shape {list(h.shape)}")
        kept = sum(saving.take().values())
        if prediction.requires_grad:
            prediction.backward(torch.ones_like(prediction))
    time, transfer = float(counter.get_total_flops()), FLOPS_PER_BYTE * h.nbytes
    if device.type != "meta":
        time, transfer = seconds(lambda: _train(module, h, context)), seconds(h.clone)
    return Price(
        parameter_bytes=sum(p.nbytes for p in parameters),
        time=time,
        bytes=h.nbytes,
        transfer=transfer,
        kept=kept,
    )


def _train(module: nn.Module, h: Tensor, context: Tensor | None) -> None:
    prediction = module(h, context)
    if prediction.requires_grad:
        prediction.backward(torch.ones_like(prediction))


def example(activation: Activation, settings: Settings, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """An activation and a context of zeros."""
    shape = list(activation.shape)
    h = torch.zeros(shape, dtype=activation.dtype)
    if not settings.size:
        return h, None
    if isinstance(module, LossHead):
        integers = settings.classes is not None
        return h, torch.zeros(shape[0], dtype=torch.long) if integers else torch.zeros(shape[0], settings.size)
    shape[activation.axis] = settings.size
    return h, torch.zeros(shape)
