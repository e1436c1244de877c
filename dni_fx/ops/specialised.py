"""Refuse other values of an argument whose value the capture fixed."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["specialised"]


def specialised(name: str, value: object, traced: object) -> None:
    """Refuse an argument value other than the one that the model was traced with."""
    if has_torch_function((value,)):
        handle_torch_function(specialised, (value,), name, value, traced)
    elif isinstance(value, Tensor) or value != traced:
        raise TypeError(
            f"argument {name!r} was {traced!r} when the model was traced, and the graph holds for that value only; "
            f"rewrite the model with example inputs that give {name!r}"
        )


torch.fx.node.has_side_effect(specialised)
