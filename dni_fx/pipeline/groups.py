"""Groups of processes for the links of a pipeline, which a later pipeline of the same processes uses again.

torch gives a group of the same processes the name of one that was destroyed, and then connects to the old addresses.
"""

import weakref
from collections import defaultdict
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed import distributed_c10d

__all__ = ["Key", "count", "fill", "give_back", "take"]


class Key(NamedTuple):
    """What distinguishes groups.

    Attributes:
        ranks: Of the processes.
        timeout: Seconds for the processes to connect, and for a sum.
    """

    ranks: tuple[int, ...]
    timeout: float


_free: "weakref.WeakKeyDictionary[dist.ProcessGroup, defaultdict[Key, list[dist.ProcessGroup]]]"
_free = weakref.WeakKeyDictionary()  # by the group of all processes, which a program may make anew


def count() -> int:
    """The number of groups of this process, which torch puts into the name of the next one."""
    return len(distributed_c10d._world.pg_names)


def fill(number: int) -> None:
    """Make groups of this process alone, until it has so many: processes with other numbers do not connect."""
    while count() < number:
        dist.new_group([dist.get_rank()], use_local_synchronization=True)


def take(key: Key) -> dist.ProcessGroup:
    """A group of these ranks, which all of them take in the same order."""
    free = _groups(key)
    if free:
        return free.pop(0)
    group: dist.ProcessGroup = dist.new_group(
        list(key.ranks), timeout=timedelta(seconds=key.timeout), use_local_synchronization=True
    )
    return group


def give_back(key: Key, group: dist.ProcessGroup) -> None:
    """Return a group on which no message is under way."""
    _groups(key).append(group)


def _groups(key: Key) -> list[dist.ProcessGroup]:
    everyone = dist.group.WORLD
    if everyone is None:  # the program has called destroy_process_group()
        return []
    return _free.setdefault(everyone, defaultdict(list))[key]
