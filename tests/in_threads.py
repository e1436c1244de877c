"""Process groups of gloo for several ranks, all in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from dni_fx.pipeline.link import break_off

Groups = list[distributed.ProcessGroup]


def at_once(*threads: threading.Thread) -> None:
    """Start them, and wait until all have ended."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def groups_of(count: int) -> Iterator[Groups]:
    """One for each rank."""
    store = distributed.HashStore()
    made: dict[int, distributed.ProcessGroup] = {}

    def make(rank: int) -> None:
        made[rank] = distributed.ProcessGroupGloo(store, rank, count, timedelta(seconds=20))

    at_once(*(threading.Thread(target=make, args=(rank,)) for rank in range(count)))
    yield [made[rank] for rank in range(count)]
    for group in made.values():
        break_off(group)  # a thread that waits inside of torch would make the program abort
