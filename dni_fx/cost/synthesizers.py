"""The cost of a synthesizer at every tensor that may cross a cut: build the synthesizer, and run it without data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from dni_fx.cost.times import seconds
from dni_fx.errors import DniFxError, first_line
from dni_fx.graph import NodeRecord, Saving, crossing_tensor, fixed_axes, flop_counter, record_of
from dni_fx.settings import Loss, Settings, loss_function
from dni_fx.synthesizers import (
    FOR_MAPS,
    Activation,
    ExitGradient,
    Factory,
    GuidedHead,
    activation_of,
    make_synthesizer,
    resolve,
    settings_at,
)

__all__ = ["Price", "map_choices", "synthesizer_prices", "without_rows"]

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
    for_maps: str = FOR_MAPS[0],
) -> tuple[dict[str, Price], dict[str, str]]:
    """Find the price of a synthesizer for every node of an annotated graph whose value may cross a cut.

    Args:
        settings: The context and the loss of the synthesizers.
        dense: As `dni_fx.synthesizers.resolve` takes it, and `for_maps`.
        measure: Measure seconds on real tensors, in place of FLOPs.

    Returns:
        The prices by node; and for nodes that can have no synthesizer, the reason.
    """
    known: dict[tuple[Activation, int], Price | str] = {}
    prices: dict[str, Price] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        record = record_of(node)
        if not (record.carries_gradient and record.shape and record.dtype and record.dtype.is_floating_point):
            continue
        own = not isinstance(synthesizer, str)
        reason = _why_no_features(node.name, record, own=own)
        reason = reason or (_why_no_context(node.name, record) if settings.size else "")
        if reason:
            refused[node.name] = reason
            continue
        device = record.device if measure and record.device is not None else torch.device("meta")
        tensor = crossing_tensor(node)
        activation, here = activation_of(tensor, device), settings_at(tensor, settings)
        loss = (here if synthesizer == "auto" else settings).loss
        key = activation, here.size
        if key not in known:
            known[key] = _price(activation, synthesizer, here, loss, dense=dense, for_maps=for_maps)
        price = known[key]
        if isinstance(price, Price):
            prices[node.name] = price
        else:
            refused[node.name] = price
    return prices, refused


def map_choices(graph: fx.Graph, synthesizer: str | Factory, settings: Settings) -> Sequence[str]:
    """The synthesizers of maps to choose from, the best first."""
    records = [record_of(node) for node in graph.nodes]
    has_maps = any(r.carries_gradient and r.axis == 1 and len(r.shape or ()) in (3, 4, 5) for r in records)
    return FOR_MAPS if synthesizer == "auto" and settings.loss is None and has_maps else FOR_MAPS[:1]


def _why_no_features(name: str, record: NodeRecord, *, own: bool) -> str:
    """The reason why no axis of a tensor can be the features of a synthesizer; empty: one can.

    Args:
        own: The synthesizer is a factory of the user's own, which may take features of any size, but not the batch.
    """
    assert record.shape is not None
    if fixed_axes(record) or (own and any(axis != record.batch for axis in range(len(record.shape)))):
        return ""
    axes = sorted(record.free if record.batch is None else record.free | {record.batch})
    which = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
    return (
        f"no synthesizer fits {name}, of shape {list(record.shape)}, which crosses the cut: its size along {which} "
        "follows the inputs, and a synthesizer needs an axis of fixed size, its features; cut at another place"
    )


def _why_no_context(name: str, record: NodeRecord) -> str:
    """The reason why the context cannot be paired with the samples in a tensor; empty: it can.

    A tensor with several rows for each sample has a context of its own order, a row for each.
    """
    if not record.reordered or record.rows != 1:
        return ""
    return (
        f"labels would go to the wrong samples at {name}, of shape {list(record.shape or ())}, which crosses the cut: "
        "forward reorders or mixes the samples before it, and labels come in the order of the inputs; cut before that, "
        "or after the order is restored, or make the net without labels"
    )


def without_rows(graph: fx.Graph, settings: Settings) -> frozenset[str]:
    """The nodes whose values have not one row a sample, as the context has; empty if there is no context."""
    if not settings.size:
        return frozenset()
    records = {node.name: record_of(node) for node in graph.nodes}
    return frozenset(n for n, record in records.items() if record.shape and (record.batch is None or record.rows != 1))


def _price(
    activation: Activation,
    synthesizer: str | Factory,
    settings: Settings,
    loss: str | Loss | None = None,
    *,
    dense: bool = False,
    for_maps: str = FOR_MAPS[0],
) -> Price | str:
    """The price, or the reason why there is no such synthesizer for this activation.

    A synthesizer that needs values does not run on the device meta: then it runs on zeros, on the CPU.
    """
    reason = ""
    function = None if loss is None else loss_function(loss)
    name, factory = resolve(synthesizer, activation.shape, activation.axis, function, dense=dense, for_maps=for_maps)
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
    if isinstance(module, ExitGradient):
        return h, h
    if isinstance(module, GuidedHead):
        integers = settings.classes is not None
        return h, torch.zeros(shape[0], dtype=torch.long) if integers else torch.zeros(shape[0], settings.size)
    if not settings.size:
        return h, None
    shape[activation.axis] = settings.size
    return h, torch.zeros(shape)
