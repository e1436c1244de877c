"""Parameters that were replaced after an optimizer, a segment or the averaging over processes had taken them."""

from operator import is_

from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.model import is_shard, is_sharded
from dni_fx.runtime.dni import StepsSegments
from dni_fx.runtime.live import held_by, live_optimizers
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.parameters import hold_parameters
from dni_fx.runtime.shards import check_whole

__all__ = ["Places", "take_parameters", "take_replaced"]


class Places:
    """The parameters and submodules of a net, by place: a look at all places tells whether one has changed."""

    def __init__(self, net: nn.Module) -> None:
        self.parameters = set(net.parameters())
        places = [place for module in net.modules() for place in (module._parameters, module._modules)]
        self._empty = [place for place in places if not place]
        self._filled = [(place, tuple(place.values())) for place in places if place]

    def unchanged(self) -> bool:
        """Whether every parameter and submodule is the same object."""
        return not any(self._empty) and all(
            len(place) == len(values) and all(map(is_, place.values(), values)) for place, values in self._filled
        )


def take_replaced(net: DecoupledModule, before: Places) -> Places:
    """Let segments and the averaging take the parameters that replaced others.

    Raises:
        DniFxError: If the net has a parameter that the optimizer which `transform` got or made does not train, or
            `fully_shard` has split layers that exits run.
    """
    if is_sharded(net):
        check_whole(net)
    now = {name: p for name, p in net.named_parameters() if p.requires_grad}
    strange = [name for name, parameter in now.items() if parameter not in before.parameters]
    if strange and isinstance(net.dni.optimizer, StepsSegments):
        if not is_sharded(net):
            raise DniFxError(_not_by_segment(strange[0]))
        if not any(map(is_shard, held_by([net.dni.optimizer]))):
            raise DniFxError(_sharded())
    optimizer = None if net.dni.given is None else net.dni.given()
    if strange and optimizer is not None:
        lost = held_by([optimizer]) & before.parameters - {*net.parameters()}
        if lost and not _is_trained(net, now[strange[0]]):
            raise DniFxError(_not_by_optimizer(strange[0]))
    return take_parameters(net)


def take_parameters(net: DecoupledModule) -> Places:
    """Let segments and the averaging take the parameters that the net has now; return the places of these."""
    if is_sharded(net):  # the parameters are others in the forward pass, and lose their gradients after each pass
        for segment in net.dni.segments:
            segment.hold(())
    else:
        hold_parameters(net, net.dni)
        if net.dni.averaging is not None:
            net.dni.averaging.take(net)
    return Places(net)


def _is_trained(net: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether an optimizer trains a parameter; of a net that is split, whether one trains shards."""
    trained = held_by(live_optimizers())
    return any(map(is_shard, trained)) if is_sharded(net) else parameter in trained


def _not_by_segment(name: str) -> str:
    return (
        f'parameter {name!r} is no longer the one that step="segment" trains: it was added or replaced after its '
        "optimizer was made, as load_state_dict(assign=True), weight_norm, adapters or to_empty do. Do that before "
        "transform, or make the optimizer again: dni_fx.SegmentOptimizer(net, torch.optim.Adam)"
    )


def _sharded() -> str:
    return (
        'fully_shard has split the parameters that the optimizer of step="segment" trains: make it again after '
        "fully_shard(net): dni_fx.SegmentOptimizer(net, torch.optim.Adam)"
    )


def _not_by_optimizer(name: str) -> str:
    return (
        f"parameter {name!r} is no longer the one that the optimizer in optimizer= trains: it was added or replaced "
        "after transform, as load_state_dict(assign=True), fully_shard or weight_norm do. Do that before transform, or "
        "make a new optimizer from net.parameters()"
    )
