"""dni-fx: cut PyTorch models into segments that train on synthetic gradients.

    net = dni_fx.transform(model, example_inputs)   # returns the rewritten net; the training loop does not change

Rewrite a model:
    transform         cut a model into segments
    plan              decide where `transform` would cut, and build nothing
    Plan              the decision: where to cut a model, why, and how
    Training          how the synthesizers are trained
    Synthesizer       base class of synthesizers of your own
    cut_after         mark a cut in the code of a model
    restore           the plain model with the trained weights

Look at the result:
    check             check that a rewritten net is the same network, decoupled
    compare           what decoupling costs in loss, and gains in memory and time, on your data
    diff              the changes of a rewrite
    log_metrics       report how well the synthesizers predict

Train and keep:
    SegmentOptimizer  an optimizer for each segment
    segments          the segments as modules, such as stages of a pipeline
    shard_segments    split the parameters over processes, by segment
    pipeline          the package that trains a net in several processes, a stage in each
    save, load        a folder for a rewritten net
    save_checkpoint, load_checkpoint
                      a file for a training run
    DNI               the interface of pytorch-dni
    DniFxError        the base class of all errors

`help(dni_fx.transform)` describes one of them. On the command line: `dni-fx --help`, or `python -m dni_fx --help`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dni_fx.api import plan, transform
    from dni_fx.comparison import compare
    from dni_fx.compiler import restore
    from dni_fx.errors import DniFxError
    from dni_fx.graph import cut_after
    from dni_fx.plans import Plan
    from dni_fx.proof import check
    from dni_fx.pytorch_dni import DNI
    from dni_fx.report import diff
    from dni_fx.runtime import SegmentOptimizer, log_metrics, segments, shard_segments
    from dni_fx.settings import Training
    from dni_fx.store import load, load_checkpoint, save, save_checkpoint
    from dni_fx.synthesizers import Synthesizer

__all__ = [
    "DNI",
    "DniFxError",
    "Plan",
    "SegmentOptimizer",
    "Synthesizer",
    "Training",
    "check",
    "compare",
    "cut_after",
    "diff",
    "load",
    "load_checkpoint",
    "log_metrics",
    "plan",
    "restore",
    "save",
    "save_checkpoint",
    "segments",
    "shard_segments",
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
    "compare": "comparison",
    "cut_after": "graph",
    "diff": "report",
    "load": "store",
    "load_checkpoint": "store",
    "log_metrics": "runtime",
    "plan": "api",
    "restore": "compiler",
    "save": "store",
    "save_checkpoint": "store",
    "segments": "runtime",
    "shard_segments": "runtime",
    "transform": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes longer than the rest of this file

        return version("dni-fx")
    if name == "pipeline":
        return importlib.import_module("dni_fx.pipeline")
    if name not in _MODULES:
        raise AttributeError(f"module 'dni_fx' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dni_fx.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    packages = [name for name, value in globals().items() if isinstance(value, ModuleType) and name != "importlib"]
    return sorted({*__all__, *packages, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"})
