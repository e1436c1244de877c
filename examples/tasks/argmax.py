"""pytorch-dnc's argmax task: digits are shown, and at the end symbol the place of the largest is wanted.

Places count from 0; of equal ones the last is meant. Loss: squared error. At the end, sequences up to twice as long.
"""

import sys
from collections.abc import Sequence

import command
from curricula import Argmax


def main(argv: Sequence[str] | None = None) -> int:
    return command.main("argmax", __doc__, Argmax, argv, nhid=100)


if __name__ == "__main__":
    sys.exit(main())
