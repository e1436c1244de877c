"""pytorch-dnc's Copy: up to so many steps of 5 bits, a flag, and the bits are wanted back.

Loss: cross entropy a bit over all steps, in nats; a guess costs 0.69. At the end, sequences up to ten times as long.
"""

import sys
from collections.abc import Sequence

import command
from curricula import DncCopy


def main(argv: Sequence[str] | None = None) -> int:
    return command.main("dnc_copy", __doc__, DncCopy, argv)


if __name__ == "__main__":
    sys.exit(main())
