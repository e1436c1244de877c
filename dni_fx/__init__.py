"""dni-fx: cut PyTorch models into segments that train on synthetic gradients."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dni_fx.api import plan, restore, transform
    from dni_fx.artifact import load, save
    from dni_fx.checking import check
    from dni_fx.checkpoint import load_checkpoint, save_checkpoint
    from dni_fx.diffing import diff
    from dni_fx.errors import DniFxError
    from dni_fx.marking import cut_after
    from dni_fx.metrics import log_metrics
    from dni_fx.planning import Plan
    from dni_fx.pytorch_dni import DNI
    from dni_fx.settings import Training
    from dni_fx.stepping import SegmentOptimizer
    from dni_fx.synthesizers import Synthesizer

__version__ = version("dni-fx")

__all__ = [
    "DNI",
    "DniFxError",
    "Plan",
    "SegmentOptimizer",
    "Synthesizer",
    "Training",
    "check",
    "cut_after",
    "diff",
    "load",
    "load_checkpoint",
    "log_metrics",
    "plan",
    "restore",
    "save",
    "save_checkpoint",
    "transform",
]

# Imported when first used: `dni-fx --help` must not wait seconds for torch.
_HOME = {
    "DNI": "pytorch_dni",
    "DniFxError": "errors",
    "Plan": "planning",
    "SegmentOptimizer": "stepping",
    "Synthesizer": "synthesizers",
    "Training": "settings",
    "diff": "diffing",
    "check": "checking",
    "cut_after": "marking",
    "load": "artifact",
    "load_checkpoint": "checkpoint",
    "log_metrics": "metrics",
    "plan": "api",
    "restore": "api",
    "save": "artifact",
    "save_checkpoint": "checkpoint",
    "transform": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dni_fx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dni_fx.{_HOME[name]}"), name)
