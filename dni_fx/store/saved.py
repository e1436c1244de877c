"""What the `model.py` of a saved folder calls."""

import importlib.util
import sys
import tokenize
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dni_fx.errors import DniFxError, SourceError
from dni_fx.model import errors_of
from dni_fx.plans import Plan, time_name
from dni_fx.runtime import Dni, add_time_cuts, build_dni, time_activation
from dni_fx.settings import loss_function, with_defaults
from dni_fx.synthesizers import resolve

__all__ = ["import_beside", "needs_model", "saved_dni"]


def import_beside(file: str, name: str) -> ModuleType:
    """The module in the file `name` in the folder of `file`, whatever else is installed under that name."""
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
    return saved_dni(Plan.load(Path(file).resolve().with_name("plan.json")))


def saved_dni(plan: Plan) -> Dni:
    if plan.rewrite is None:
        raise DniFxError("the plan does not say how the model was rewritten")
    shapes = {f"cut{i}_{t.node}": t for i, cut in enumerate(plan.cuts) for t in cut.tensors}
    states = {time_name(index): state for index, state in enumerate(plan.states)}
    settings = plan.rewrite.settings
    loss = None if settings.loss is None else loss_function(settings.loss)
    factories = {}
    for crossing, name in plan.rewrite.synthesizers.items():
        if crossing in states:
            factories[crossing] = resolve(name, time_activation(states[crossing]).shape, 1)[1]
            continue
        if crossing not in shapes:
            raise DniFxError(f"the plan has a synthesizer for {crossing!r}, which is no crossing of it")
        factories[crossing] = resolve(name, shapes[crossing].shape, shapes[crossing].axis, loss)[1]
    dni = build_dni(plan, factories, with_defaults(settings, named=True))
    add_time_cuts(dni, factories, with_defaults(settings, named=True, in_time=True))
    return dni


def needs_model(file: str) -> None:
    """Stands where a class holds a graph alone."""
    raise SourceError(
        f"{file} holds no modules of its own, since no symbolic trace of the model was possible: load with "
        "dni_fx.load(folder, model=model)"
    )


def rebuild(cls: type[nn.Module], **attributes: Any) -> nn.Module:
    """A module of a class with these attributes, without calling its constructor; children are added after."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(attributes)
    return module


def missing(path: str, cls: str, what: str) -> nn.Module:
    """Stands where a module could not be written as source."""
    raise SourceError(
        f"{path} is a {cls}, and {what} cannot be written without a pickle: load with dni_fx.load(folder, model=model)"
    )
