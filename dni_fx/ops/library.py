"""The torch.library that holds the operators of dni-fx."""

import torch

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("dni_fx", "FRAGMENT")
