"""dni-fx: cut PyTorch models into segments that train on synthetic gradients."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dni_fx.api import plan, transform
    from dni_fx.compiler import restore
    from dni_fx.errors import DniFxError
    from dni_fx.graph import cut_after
    from dni_fx.plans import Plan
    from dni_fx.proof import check
    from dni_fx.pytorch_dni import DNI
    from dni_fx.report import diff
    from dni_fx.runtime import SegmentOptimizer, log_metrics
    from dni_fx.settings import Training
    from dni_fx.store import load, load_checkpoint, save, save_checkpoint
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

# The module of each public name, imported at first use: `import dni_fx` alone must not take the seconds torch does.
_MODULES = {
    "DNI": "pytorch_dni",
    "DniFxError": "errors",
    "Plan": "plans",
    "SegmentOptimizer": "runtime",
    "Synthesizer": "synthesizers",
    "Training": "settings",
    "check": "proof",
    "cut_after": "graph",
    "diff": "report",
    "load": "store",
    "load_checkpoint": "store",
    "log_metrics": "runtime",
    "plan": "api",
    "restore": "compiler",
    "save": "store",
    "save_checkpoint": "store",
    "transform": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dni_fx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dni_fx.{_MODULES[name]}"), name)
