"""Weights that several stages have: with `sync` their gradients are added up; else exits have copies, renewed."""

from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.errors import first_line
from dni_fx.pipeline.connection import Connection
from dni_fx.pipeline.link import LinkError, Peer, Receiver, Sender
from dni_fx.pipeline.stage import Stage

__all__ = ["SharedWeights"]


class SharedWeights:
    """The weights of a stage that other stages have, too, and the links for them.

    Args:
        refresh: Without `sync`: the updates of the stage that trains a weight, after which the copies are renewed.
    """

    def __init__(self, stage: Stage, connection: Connection, sync: bool, refresh: int, timeout: float) -> None:
        self.own, self.sync, self.refresh = connection.own, sync, refresh
        by_name = dict(stage.named_parameters())
        self._summed: list[tuple[dist.ProcessGroup, list[nn.Parameter]]] = []
        self._copies: list[tuple[Receiver, list[nn.Parameter]]] = []
        self._copied: list[tuple[Sender, list[nn.Parameter]]] = []
        ranks, group = connection.ranks, connection.shared
        weights = [(weight, by_name[weight.names[stage.index]]) for weight in stage.shared]
        if sync:
            for holders, found in groupby(
                sorted(weights, key=lambda w: sorted(w[0].names)), lambda w: sorted(w[0].names)
            ):
                holding = connection.take_group([ranks[index] for index in holders])
                self._summed.append((holding, [p for _, p in found]))
            return
        # Exits use weights of later stages: the last stage that has a weight trains it.
        for index in range(stage.count):
            lent = [p for w, p in weights if index in w.names and w.owners[-1] == stage.index != index]
            if lent:
                self._copied.append((Sender(Peer(index, ranks[index]), group, timeout, 1), lent))
            borrowed = [p for w, p in weights if w.owners[-1] == index != stage.index]
            if borrowed:
                device = borrowed[0].device
                self._copies.append((Receiver(Peer(index, ranks[index]), group, device, timeout), borrowed))

        connection.others += [*(sender for sender, _ in self._copied), *(receiver for receiver, _ in self._copies)]

    def pre_run(self) -> None:
        """Take new values of copies, if some have come."""
        for receiver, parameters in self._copies:
            while (found := receiver.poll()) is not None:
                with torch.no_grad():
                    for parameter, value in zip(parameters, found, strict=True):
                        parameter.copy_(value)

    def pre_update(self) -> None:
        """With `sync`, add the gradients up; else drop those of copies, which only follow.

        Raises:
            LinkError: If another process is gone, or does not take part within the timeout.
        """
        for _, parameters in self._copies:
            for parameter in parameters:
                parameter.grad = None
        for group, parameters in self._summed:
            gradients = [_gradient(parameter) for parameter in parameters]
            for gradient in gradients:
                try:
                    dist.all_reduce(gradient, group=group)
                except RuntimeError as error:
                    what = f"a sum of gradients of several stages failed: {first_line(error)}"
                    raise LinkError(what, self.own.stage) from None

    def post_update(self, updates: int) -> None:
        """Send the weights to those that have copies, unless they have not taken the last ones."""
        if updates % self.refresh == 0:
            for sender, parameters in self._copied:
                sender.offer([parameter.detach().clone() for parameter in parameters])


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
