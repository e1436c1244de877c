"""Refuse other values of an argument whose value the capture fixed."""

import torch
from torch.overrides import handle_torch_function, has_torch_function

from dni_fx.model import other_argument, same_value, shown

__all__ = ["specialised"]


def specialised(name: str, value: object, traced: object) -> None:
    """Refuse an argument value other than the one that the model was traced with."""
    if has_torch_function((value,)):
        handle_torch_function(specialised, (value,), name, value, traced)
    elif not same_value(value, traced):
        raise other_argument(name, shown(traced), value, was_float=isinstance(traced, float))


torch.fx.node.has_side_effect(specialised)
