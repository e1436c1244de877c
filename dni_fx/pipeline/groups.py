"""Groups of processes for the links of a pipeline, which a later pipeline of the same processes uses again.

torch gives a group of the same processes the name of one that was destroyed, and then connects to the old addresses.
"""

import weakref
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

__all__ = ["give_back", "take"]

_FOREVER = timedelta(days=365)  # a thread waits for the next message; who asks for it has a timeout

_free: "weakref.WeakKeyDictionary[dist.ProcessGroup, defaultdict[tuple[int, ...], list[dist.ProcessGroup]]]"
_free = weakref.WeakKeyDictionary()  # by the group of all processes, which a program may make anew


def take(ranks: Sequence[int]) -> dist.ProcessGroup:
    """A group of these ranks, which all of them take in the same order."""
    free = _groups(ranks)
    if free:
        return free.pop(0)
    group: dist.ProcessGroup = dist.new_group(list(ranks), timeout=_FOREVER, use_local_synchronization=True)
    return group


def give_back(ranks: Sequence[int], group: dist.ProcessGroup) -> None:
    """Return a group on which no message is under way."""
    _groups(ranks).append(group)


def _groups(ranks: Sequence[int]) -> list[dist.ProcessGroup]:
    everyone = dist.group.WORLD
    assert everyone is not None
    return _free.setdefault(everyone, defaultdict(list))[tuple(ranks)]
