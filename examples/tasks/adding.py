"""pytorch-dnc's adding task: digits are shown one after the other, and at the end symbol their sum is wanted.

Loss: squared error. At the end, sequences up to ten times as long. Here the last output is the sum; there it is the sum
of all outputs, for which nothing has to be remembered, and which no single window knows.
"""

import sys
from collections.abc import Sequence

import command
from curricula import Adding


def main(argv: Sequence[str] | None = None) -> int:
    return command.main("adding", __doc__, Adding, argv, sequence_max_length=1000, steps=2000)


if __name__ == "__main__":
    sys.exit(main())
