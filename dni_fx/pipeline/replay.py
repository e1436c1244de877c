"""A stage whose stage below is gone trains on the last microbatches that came from it again."""

import warnings
from collections import deque
from typing import Any

from dni_fx.pipeline.batch import copied
from dni_fx.pipeline.link import LinkError, Receiver

__all__ = ["Replay"]

_MOST = 8  # microbatches


class Replay:
    """The last microbatches that a stage has received: the values from the stage below, and the targets of the loss."""

    def __init__(self) -> None:
        self._last: deque[tuple[list[Any], Any]] = deque(maxlen=_MOST)
        self._has_warned = False

    def take(self, receiver: Receiver, target: Any) -> tuple[list[Any], Any]:
        """The next microbatch with its target, or one of the last ones with its own.

        Raises:
            LinkError: If the stage below has ended its training, or is gone before any microbatch has come.
        """
        try:
            given = receiver.take()
        except LinkError as error:
            if error.suspect is None or not self._last:
                raise
            if not self._has_warned:
                text = f"{receiver.peer} is gone: this stage trains on its last {len(self._last)} microbatches again"
                warnings.warn(text, stacklevel=6)
                self._has_warned = True
            given, target = self._last.popleft()
        # A copy: a stage may change what it takes, and the loop may fill the buffer of a batch again.
        self._last.append((copied(given), copied(target)))
        return given, target
