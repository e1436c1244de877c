"""Adapters of `peft`: small matrices beside a layer, which train while all else is frozen."""

from torch import nn

__all__ = ["is_adapter"]


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is a layer with an adapter."""
    return any(cls.__name__ == "BaseTunerLayer" and cls.__module__.startswith("peft.") for cls in type(module).__mro__)
