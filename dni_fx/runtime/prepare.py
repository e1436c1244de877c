"""The last step of a rewrite, and of loading a saved net."""

from dni_fx.runtime.averaging import average_segments
from dni_fx.runtime.context_source import find_source
from dni_fx.runtime.exits import connect_exits
from dni_fx.runtime.loss_factor import measure_loss_factor
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.parameters import hold_parameters
from dni_fx.runtime.pieces import close_after_errors
from dni_fx.runtime.sharding import keep_whole_parameters
from dni_fx.runtime.shards import shard_synthesizers
from dni_fx.runtime.time_horizon import replay_windows
from dni_fx.runtime.watch import watch_training
from dni_fx.settings import Loss

__all__ = ["prepare_training"]


def prepare_training(net: DecoupledModule, loss: str | Loss | None) -> None:
    """Give each segment its parameters, and look at the training loop from now on.

    Args:
        loss: The training loss; None: not known.
    """
    connect_exits(net)
    shard_synthesizers(net)
    source = net.dni.rewrite.context_from
    net.dni_context_source = None if source is None else find_source(source, net.forward)
    close_after_errors(net)
    hold_parameters(net, net.dni)
    if net.dni.rewrite.unlock == "backward":
        average_segments(net)
        keep_whole_parameters(net)
    replay_windows(net)
    measure_loss_factor(net, loss)
    watch_training(net)
