"""What a synthesizer would cost at every tensor that may cross a cut: from building it and running it without data."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dni_fx import costs, meta
from dni_fx.saving import Saving
from dni_fx.synthesizers import Activation, Factory, resolve

__all__ = ["Price", "synthesizer_prices"]

FLOPS_PER_BYTE = 10.0  # as long as it takes to move a byte between processes: a few GB/s, beside tens of GFLOP/s


@dataclass(frozen=True)
class Price:
    """Of the synthesizer of one tensor."""

    parameters: int  # entries
    parameter_bytes: int
    time: float  # a prediction, and the backward pass that trains on it: FLOPs, or measured seconds
    bytes: int  # of the tensor, so of its prediction, its gradient and its target
    transfer: float  # time to hand the tensor over to another process
    kept: int  # bytes that autograd keeps from the prediction until its target comes, but the tensor


def synthesizer_prices(graph: fx.Graph, synthesizer: str | Factory, context_size: int) -> dict[str, Price]:
    """The price of a synthesizer for every node of an annotated graph that can have one.

    Args:
        context_size: Entries of what it is conditioned on; 0: nothing.
    """
    known: dict[Activation, Price | None] = {}
    prices: dict[str, Price] = {}
    for node in graph.nodes:
        record = meta.of(node)
        if not (record.carries_gradient and record.shape and record.dtype and record.dtype.is_floating_point):
            continue
        axis = record.axis % len(record.shape)
        activation = Activation(record.shape, record.dtype, torch.device("meta"), axis)
        if activation not in known:
            known[activation] = _price(activation, synthesizer, context_size)
        price = known[activation]
        if price is not None:
            prices[node.name] = price
    return prices


def _price(activation: Activation, synthesizer: str | Factory, context_size: int) -> Price | None:
    """None: there is no such synthesizer for this activation, or it does not run without data."""
    _, factory = resolve(synthesizer, activation.shape, activation.axis)
    counter = costs.flop_counter()
    try:
        with torch.device("meta"):
            module = factory(activation, context_size).to(activation.dtype)
            h, context = example(activation, context_size)
        saving = Saving([*module.parameters(), h])
        with counter, saving:
            prediction = module(h, context)
            kept = sum(saving.take().values())
            if prediction.requires_grad:
                prediction.sum().backward()
    except Exception:
        return None
    parameters = list(module.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    return Price(
        sum(p.numel() for p in parameters), size, counter.get_total_flops(), h.nbytes, FLOPS_PER_BYTE * h.nbytes, kept
    )


def example(activation: Activation, context_size: int) -> tuple[Tensor, Tensor | None]:
    """What a synthesizer is called with: zeros."""
    shape = list(activation.shape)
    h = torch.zeros(shape, dtype=activation.dtype)
    shape[activation.axis] = context_size
    return h, torch.zeros(shape) if context_size else None
