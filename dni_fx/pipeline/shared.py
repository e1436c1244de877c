"""Weights that several stages have: with `sync` their gradients are added up; else exits have copies, renewed.

Of stages that `fully_shard` has split, each replica sends its shards to the same replica of the other stage. The shards
of a copy may come at different times: its parts may be of different ages.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dni_fx.model import own_part
from dni_fx.pipeline.connection import Connection
from dni_fx.pipeline.link import Peer, Receiver, Sender
from dni_fx.pipeline.stage import Stage

__all__ = ["SharedWeights"]


class SharedWeights:
    """The weights of a stage that other stages have, too, and the links for them.

    Args:
        refresh: Without `sync`: the updates of the stage that trains a weight, after which the copies are renewed.
    """

    def __init__(self, stage: Stage, connection: Connection, sync: bool, refresh: int, timeout: float) -> None:
        self.own, self.refresh = connection.own.stage, refresh
        self._added: list[tuple[Sender, Receiver, list[nn.Parameter]]] = []
        self._copies: list[tuple[Receiver, list[nn.Parameter]]] = []
        self._copied: list[tuple[Sender, list[nn.Parameter]]] = []
        by_name = dict(stage.named_parameters())
        found = [(weight, by_name[weight.names[stage.index]]) for weight in stage.shared]
        weights = [(weight, p) for weight, p in found if p.requires_grad or not sync]
        device = next((p.device for _, p in weights), torch.device("cpu"))
        for index in range(stage.count):
            peer, link = Peer(index, connection.ranks[index]), (connection.shared, timeout, 1)
            receiving = connection.shared, device, timeout
            common = [p for w, p in weights if index in w.names]
            # Exits use weights of later stages: the last stage that uses a weight in its own segments trains it.
            lent = [p for w, p in weights if index in w.names and w.owners[-1] == stage.index]
            borrowed = [p for w, p in weights if w.owners[-1] == index]
            if index == stage.index:
                continue
            if sync and common:
                self._added.append((Sender(peer, *link), Receiver(peer, *receiving), common))
            if not sync and lent:
                self._copied.append((Sender(peer, *link), lent))
            if not sync and borrowed:
                self._copies.append((Receiver(peer, *receiving), borrowed))
        for sender, receiver, _ in self._added:
            connection.others += [sender, receiver]
        connection.others += [*(sender for sender, _ in self._copied), *(receiver for receiver, _ in self._copies)]
        self._begin_alike({p: weight.owners[-1] for weight, p in weights})

    def _begin_alike(self, trained_by: Mapping[nn.Parameter, int]) -> None:
        """With `sync`, begin with the values of the stage that trains a weight: processes may draw others."""
        for sender, _, parameters in self._added:
            sender.send([own_part(parameter.detach()) for parameter in parameters])
        for sender, receiver, parameters in self._added:
            for parameter, value in zip(parameters, receiver.take(), strict=True):
                if trained_by[parameter] == sender.peer.stage:
                    own_part(parameter.detach()).copy_(value)

    def pre_run(self) -> None:
        """Take new values of copies, if some have come."""
        for receiver, parameters in self._copies:
            while (found := receiver.poll()) is not None:
                for parameter, value in zip(parameters, found, strict=True):
                    own_part(parameter.detach()).copy_(value)
                torch.clear_autocast_cache()

    def pre_update(self) -> None:
        """With `sync`, add the gradients up; else drop those of copies, which only follow.

        A weight that has no gradient in any stage keeps none: an optimizer would decay it.

        Raises:
            LinkError: If another process is gone, or does not take part within the timeout.
        """
        for _, parameters in self._copies:
            for parameter in parameters:
                parameter.grad = None
        for sender, _, parameters in self._added:
            sender.send([None if p.grad is None else own_part(p.grad) for p in parameters])
        parts: dict[nn.Parameter, dict[int, Tensor]] = {}
        for sender, receiver, parameters in self._added:
            for parameter, gradient in zip(parameters, receiver.take(), strict=True):
                own = {} if parameter.grad is None else {self.own: own_part(parameter.grad).clone()}
                parts.setdefault(parameter, own)
                if gradient is not None:
                    parts[parameter][sender.peer.stage] = gradient
        for parameter, gradients in parts.items():  # in the order of the stages: then all sums are the same
            if gradients:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                own_part(parameter.grad).copy_(torch.stack([gradients[index] for index in sorted(gradients)]).sum(0))

    def post_update(self, updates: int) -> None:
        """Send the weights to those that have copies, unless they have not taken the last ones."""
        if updates % self.refresh == 0:
            for sender, parameters in self._copied:
                sender.offer([own_part(parameter.detach()) for parameter in parameters])
