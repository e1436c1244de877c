"""What the compiler sees of a model before it cuts: found, and as text and a table."""

from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from dni_fx.capture import Capture, labels_of, possible_state
from dni_fx.cost import OPTIMIZER_STATES, CostModel, node_times, resident
from dni_fx.cuts import Place, places_of
from dni_fx.errors import NoLegalCutError
from dni_fx.graph import dataflow
from dni_fx.model import Inputs, describe
from dni_fx.partition import count_layers, find_candidates, find_positions
from dni_fx.report import Fitted, abridged, add_row, plain_table
from dni_fx.units import bytes_text, quantity

__all__ = ["Inspection", "inspection", "inspection_view"]


@dataclass(frozen=True)
class Inspection:
    """What the compiler sees of a model.

    Attributes:
        model: The name of the model's class.
        inputs: The example inputs: the name, shape and dtype of each.
        inputs_from: The source of the example inputs.
        frontend: The front end that captured the model.
        tried: The front ends that could not capture the model, each with the reason.
        parameters: The number of entries of all parameters.
        trainable: The number of entries of the parameters that require grad.
        layers: The number of operations with a weight matrix.
        operations: The number of operations of the graph.
        legal: The number of operations after which the model can be cut.
        no_cut: The reason why the model cannot be cut; empty: it can.
        places: The narrowest place between any two layers: of these the cuts are chosen.
        unit: The unit of the forward time of the places: "FLOPs" or "s".
        tied: The names of each parameter that has several.
        state: The arguments that may be state, with the output that may be the next value: for a cut in time.
        own_loss: The operation whose value is the loss that the model returns; empty: it returns none.
        labels: The inputs that this loss alone depends on.
    """

    model: str
    inputs: tuple[str, ...]
    inputs_from: str
    frontend: str
    tried: tuple[str, ...]
    parameters: int
    trainable: int
    layers: int
    operations: int
    legal: int
    no_cut: str
    places: tuple[Place, ...]
    unit: str
    tied: tuple[tuple[str, ...], ...] = ()
    state: dict[str, int | str] = field(default_factory=dict)
    own_loss: str = ""
    labels: tuple[str, ...] = ()


def inspection(model: nn.Module, example: Inputs, captured: Capture, *, profile: bool) -> Inspection:
    """What is known of a captured model."""
    module = captured.module
    flow = dataflow(module.graph, node_times(module, example) if profile else None)
    cost_model = CostModel(flow, {}, resident(model, example, OPTIMIZER_STATES), unit="s" if profile else "FLOPs")
    candidates, no_cut = [], ""
    try:
        candidates = find_candidates(flow, module.dni_preferred_ends())
    except NoLegalCutError as error:
        no_cut = str(error)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Inspection(
        model=type(model).__name__,
        inputs=describe(example),
        inputs_from=example.source,
        frontend=captured.frontend,
        tried=captured.tried,
        parameters=sum(size for size, _ in sizes),
        trainable=sum(size for size, trains in sizes if trains),
        layers=count_layers(flow),
        operations=len(flow),
        legal=sum(not position.obstacle for position in find_positions(flow)),
        no_cut=no_cut,
        places=places_of(module.graph, cost_model, [candidate.position for candidate in candidates]),
        unit=cost_model.unit,
        tied=tuple(tuple(same) for same in names.values() if len(same) > 1),
        state=possible_state(model, module, example),
        own_loss=module.dni_own_loss(),
        labels=labels_of(module.graph) if module.dni_runs_graph else (),
    )


def inspection_view(found: Inspection, *, whole: bool) -> RenderableType:
    """Sentences, and the table of places."""
    frozen = f", {quantity(found.trainable)} of them trainable" if found.trainable < found.parameters else ""
    refused = "; others were refused" if found.tried else ""
    first = (
        f"{found.model} has {quantity(found.parameters)} parameters{frozen} in {found.layers} layers; the front end "
        f"{found.frontend} captured it{refused}."
    )
    if found.no_cut:
        second = f"It cannot be cut: {found.no_cut}."
    else:
        second = f"It can be cut after {found.legal} of {found.operations} operations."
    lines = [Text(f"{first} {second}"), Text()]
    lines.append(Text(f"inputs: {'; '.join(found.inputs) or 'none'} ({found.inputs_from})"))
    lines += [Text(f"not by {reason}", "dim") for reason in found.tried]
    lines += [Text(f"tied: {' and '.join(names)} are one parameter") for names in found.tied]
    if found.state:
        option = ",".join(f"{name}={output}" for name, output in found.state.items())
        lines.append(Text(f"state: it could be cut in time with --state {option}"))
    if found.own_loss:
        labels = f", with the labels {', '.join(found.labels)}" if found.labels else ""
        lines.append(Text(f"loss: the model returns its own, {found.own_loss}{labels}"))
    return Group(*lines, *([Text(), _table(found, whole)] if found.places else []))


def _table(found: Inspection, whole: bool) -> RenderableType:
    """A row for each place; where the console is narrow, without the text of the line, or without the line."""

    def table(*, place: bool, text: bool) -> Table:
        numbers = ("bytes", "forward", "saved")
        lines = ["line"] * place + ["code"] * text
        made = plain_table(
            "the narrowest place between any two layers; below it, the share of the forward time and of saved memory",
            ("cut after", "tensor", *numbers, *lines),
            right=numbers,
        )

        def add(_number: int, one: Place) -> None:
            tensors = "\n".join(f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}" for tensor in one.tensors)
            shares = [f"{100 * share:.0f} %" for share in (one.forward, one.saved)]
            add_row(made, one.name, tensors, bytes_text(one.bytes), *shares, *one.line[: len(lines)])

        abridged(made, found.places, add, whole=whole)
        return made

    return Fitted([table(place=True, text=True), table(place=True, text=False), table(place=False, text=False)])
