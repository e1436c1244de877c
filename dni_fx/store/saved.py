"""The functions that the `model.py` of a saved folder calls, and `saved_dni`.

Saved files depend on the names of this module and of these functions: a rename would break them.
"""

import importlib.util
import sys
import tokenize
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dni_fx.errors import DniFxError, SourceError
from dni_fx.model import errors_of
from dni_fx.plans import Plan
from dni_fx.runtime import Dni, add_time_cuts, build_dni
from dni_fx.settings import with_defaults
from dni_fx.store.settled import checked_plan
from dni_fx.synthesizers import factories, import_synthesizers

__all__ = ["import_beside", "missing", "needs_model", "read_dni", "rebuild", "saved_dni"]


def import_beside(file: str, name: str) -> ModuleType:
    """Import the file `name` in the folder of `file`, even if a module of this name is installed."""
    path = Path(file).resolve().with_name(name)
    unique = f"dni_fx_saved_{path.stem}_{abs(hash(str(path)))}"
    with errors_of(f"{path.parent.name}/{name}"):
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        with tokenize.open(path) as source:
            text = source.read().replace("dni_fx.artifact", __name__)  # the name of this module in 0.1.0
        exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def read_dni(file: str) -> Dni:
    """The submodule `dni` for the plan in the folder of `file`."""
    return saved_dni(checked_plan(Path(file).resolve().parent))


def saved_dni(plan: Plan) -> Dni:
    """The submodule `dni` for a plan that names its synthesizers, with fresh weights."""
    if plan.rewrite is None:
        raise DniFxError("the plan does not say how to rewrite the model: its entry rewrite is empty")
    settings, named = plan.rewrite.settings, plan.rewrite.named
    synthesizers = import_synthesizers(plan.rewrite.synthesizers, plan.rewrite.paths, named=named)
    _, makers = factories(plan, synthesizers, settings.loss)
    dni = build_dni(plan, makers, with_defaults(settings, named=named))
    add_time_cuts(dni, makers, with_defaults(settings, named=named, in_time=True))
    return dni


def needs_model(file: str) -> None:
    """Raise the error of a class that holds a graph without modules."""
    raise SourceError(
        f"{file} holds the graph without modules, since the model was not captured by the front end fx: load it with "
        "dni_fx.load(folder, model=model)"
    )


def rebuild(cls: type[nn.Module], /, **attributes: Any) -> nn.Module:
    """Make a module with these attributes, without a call of its constructor. The caller adds the children."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(attributes)
    return module


def missing(path: str, cls: str, what: str) -> nn.Module:
    """Raise the error of a module that could not be written as source."""
    raise SourceError(
        f"{path} is a {cls}, and {what} cannot be written without a pickle: load with dni_fx.load(folder, model=model)"
    )
