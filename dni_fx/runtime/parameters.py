"""Which segment owns which parameter."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from dni_fx.model import at_path
from dni_fx.plans import Plan, crossing_name, time_name
from dni_fx.runtime.dni import Dni

__all__ = ["SegmentParameters", "hold_parameters", "owned_parameters"]


@dataclass
class SegmentParameters:
    """The parameters that get their gradients in the backward pass of one segment: its own, and of synthesizers."""

    own: list[nn.Parameter] = field(default_factory=list)
    synthesizers: list[nn.Parameter] = field(default_factory=list)

    def every(self) -> list[nn.Parameter]:
        return [*self.own, *self.synthesizers]


def hold_parameters(net: fx.GraphModule, dni: Dni) -> None:
    """Let each segment below a cut hold the parameters that its nodes use in `net`'s graph."""
    of_segments = parameters_by_segment(net, dni.plan)
    for segment, used in zip(dni.segments, of_segments[:-1], strict=True):
        segment.hold(used)
    if dni.segments:  # only the last one's targets come in the backward pass of the loss
        *below, last, above = of_segments
        elsewhere = {p for used in (*below, above) for p in used} | _trained_by_exits(net, dni)
        dni.segments[-1].accumulation.watch(p for p in last if p not in elsewhere)


def _trained_by_exits(net: fx.GraphModule, dni: Dni) -> set[nn.Parameter]:
    """The parameters of the model that exits train, whose targets come at other times."""
    found: set[nn.Parameter] = set()
    exits = [cut.exit for cut in dni.plan.cuts if cut.exit is not None]
    # Units that run once get all their gradients in the backward pass of their segment.
    for path in {path for planned in exits for path in planned.borrowed if path not in planned.copied}:
        value = at_path(net, path)
        found |= set(value.parameters()) if isinstance(value, nn.Module) else {value}
    return found


def parameters_by_segment(net: fx.GraphModule, plan: Plan) -> list[list[nn.Parameter]]:
    """The parameters that the nodes of each segment use in `net`'s graph."""
    by_name = {node.name: node for node in net.graph.nodes}
    output = net.graph.output_node()  # a saved class does not know its name
    called = {str(node.target) for node in net.graph.nodes if node.op == "call_module"}
    found = []
    for segment in plan.segments:
        used: dict[int, nn.Parameter] = {}
        for node in (by_name.get(name, output) for name in segment.nodes):
            if node.op == "call_module":
                used.update({id(p): p for p in _own_parameters(net, str(node.target), called)})
            for source in node.all_input_nodes:
                value = at_path(net, str(source.target)) if source.op == "get_attr" else None
                if isinstance(value, nn.Parameter):
                    used[id(value)] = value
        found.append(list(used.values()))
    return found


def owned_parameters(net: fx.GraphModule, dni: Dni) -> list[SegmentParameters]:
    """Parameters of every segment, and of the synthesizers whose targets come from its backward pass.

    A parameter that several segments use is in the last of these segments; a parameter that no node is known to use,
    in the last segment of all.
    """
    owner: dict[nn.Parameter, int] = {}
    for index, used in enumerate(parameters_by_segment(net, dni.plan)):
        owner |= dict.fromkeys(used, index)
    of_synthesizers = set(dni.parameters())
    for parameter in net.parameters():  # a record of calls does not show the parameters of modules that contain others
        if parameter not in of_synthesizers:
            owner.setdefault(parameter, len(dni.plan.cuts))
    found = [SegmentParameters() for _ in dni.plan.segments]
    for parameter, index in owner.items():
        found[index].own.append(parameter)
    for index, cut in enumerate(dni.plan.cuts):
        for tensor in cut.predicted:
            synthesizer = dni.crossings[crossing_name(index, tensor.node)]
            found[index + 1].synthesizers.extend(p for p in synthesizer.parameters() if p not in owner)
        if index in dni.exits:
            found[index + 1].synthesizers.extend(dni.exits[index].parameters())
    for index, state in enumerate(dni.plan.states):  # targets come from the segment that the state enters
        found[state.enters[-1]].synthesizers.extend(dni.crossings[time_name(index)].parameters())
    return found


def _own_parameters(net: fx.GraphModule, name: str, called: set[str]) -> Iterator[nn.Parameter]:
    """The parameters of a module, without those of inner modules whose calls are nodes themselves."""
    module = net.get_submodule(name)
    yield from module.parameters(recurse=False)
    for child in dict(module.named_children()):
        if f"{name}.{child}" not in called:
            yield from _own_parameters(net, f"{name}.{child}", called)
