"""Repeat Copy (Jaderberg et al. 2017): N symbols of 8 bits are shown, and wanted back R times.

When the loss is below 0.15 bits a bit, the end mark and its channel included, R grows by one, or N where R has come to
it. The paper: LSTM 256, batch 256, Adam 7e-5, windows of 2 to 5.
"""

import sys
from collections.abc import Sequence

import command
from curricula import RepeatCopy


def main(argv: Sequence[str] | None = None) -> int:
    defaults = {"batch_size": 64, "nhid": 256, "nhlayer": 1, "lr": 1e-3}
    return command.main("repeat_copy", __doc__, RepeatCopy, argv, **defaults)


if __name__ == "__main__":
    sys.exit(main())
