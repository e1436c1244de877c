"""What the inputs of a captured model may be for: state that it could be cut off from in time, and labels."""

from torch import fx, nn

from dni_fx.capture.time_states import find_state
from dni_fx.errors import DniFxError
from dni_fx.graph import own_loss, record_of, returned_nodes
from dni_fx.model import Inputs, by_name, canonical
from dni_fx.runtime import DecoupledModule

__all__ = ["labels_of", "possible_state"]


def possible_state(model: nn.Module, net: DecoupledModule, inputs: Inputs) -> dict[str, int | str]:
    """The arguments that may be state, with the output that may be its next value: `state` of `transform`.

    The first argument is data. An output is the next value if it has the structure and shapes of the argument.
    """
    arguments = list(by_name(model.forward, *canonical(model.forward, inputs.args, inputs.kwargs)))
    result, _ = net.dni_result(inputs)
    keys: list[int | str] = list(result) if isinstance(result, dict) else []
    keys = list(range(len(result))) if isinstance(result, tuple | list) else keys
    found: dict[str, int | str] = {}
    for argument in arguments[1:]:
        for key in keys:
            if key not in found.values() and _is_state(model, net, inputs, found | {argument: key}):
                found[argument] = key
                break
    return found


def _is_state(model: nn.Module, net: DecoupledModule, inputs: Inputs, option: dict[str, int | str]) -> bool:
    try:
        find_state(model, net, inputs, option)
    except DniFxError:
        return False
    return True


def labels_of(graph: fx.Graph) -> tuple[str, ...]:
    """The inputs that the model's own loss alone depends on; none if it does not return one."""
    loss = own_loss(graph)
    if loss is None:
        return ()
    others = [node for node in returned_nodes(graph) if node is not loss and record_of(node).carries_gradient]
    of_loss, of_others = _below([loss]), _below(others)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return tuple(node.name for node in inputs if node in of_loss and node not in of_others) if others else ()


def _below(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that these depend on, and these."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found
