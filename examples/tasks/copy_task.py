"""Copy (Jaderberg et al. 2017): N symbols of 8 bits are shown, and wanted back.

N grows by one when the loss is below 0.15 bits a bit, the end mark and its channel included; to guess the symbols costs
0.44 at N 1, and up to 0.89. What a window's length forbids truncated backpropagation to learn, a cut in time can.
The paper: LSTM 256, batch 256, Adam 7e-5, windows of 2 to 5.
"""

import sys
from collections.abc import Sequence

import command
from curricula import Copy


def main(argv: Sequence[str] | None = None) -> int:
    defaults = {"batch_size": 64, "nhid": 256, "nhlayer": 1, "lr": 1e-3}
    return command.main("copy_task", __doc__, Copy, argv, **defaults)


if __name__ == "__main__":
    sys.exit(main())
