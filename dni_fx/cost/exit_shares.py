"""What exits may take, as a share of backprop's step."""

__all__ = ["EXIT_SHARE", "exit_share", "most_for_units"]

EXIT_SHARE = 0.15  # of a step, for all exits; of a forward pass, for the layers of one, which else has small heads
_EXIT_SHARE_OF_MANY = 0.30  # of a step, from four segments on; checkpointing takes a third
_MANY = 4  # segments
_UNITS_OF_MANY = 0.20  # of a step, from four segments on, for units


def exit_share(segments: int) -> float:
    """What all exits may take, as a share of backprop's step, where the cuts are free."""
    return EXIT_SHARE if segments < _MANY else _EXIT_SHARE_OF_MANY


def most_for_units(segments: int) -> float:
    """What exits with units may take, beside the tails, which every exit needs, as a share of backprop's step."""
    return EXIT_SHARE if segments < _MANY else _UNITS_OF_MANY
