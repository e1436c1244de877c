"""Load and capture what the arguments of a command name."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dni_fx.cli.progress import ShowStage, note
from dni_fx.errors import DniFxError, SourceError

if TYPE_CHECKING:
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dni_fx.model import Inputs
    from dni_fx.planning import Request
    from dni_fx.plans import Plan
    from dni_fx.runtime import DecoupledModule

__all__ = ["batches_of", "capture", "load_model", "load_saved", "load_target", "named"]


def capture(
    target: str, specs: list[str] | None, request: "Request", show: ShowStage
) -> "tuple[DecoupledModule, Plan, Inputs]":
    """Load and capture the target, and decide where to cut it."""
    from dni_fx.planning import capture_and_plan

    model, example = load_target(target, specs, show)
    with contextlib.redirect_stdout(sys.stderr):
        show("capturing")
        return *capture_and_plan(model, example, request), example


def load_target(
    target: str, specs: list[str] | None, show: ShowStage, making: "FakeTensorMode | None" = None
) -> "tuple[nn.Module, Inputs]":
    """Load the model and its example inputs, or find inputs that fit; `making` as for `dni_fx.model.load_target`."""
    from dni_fx import model as loading
    from dni_fx.api import example_inputs_of

    given = loading.parse_specs(specs) if specs else None
    with contextlib.redirect_stdout(sys.stderr):  # the person's code may print
        show(f"loading {target}")
        model, beside = loading.load_target(target, making)
        show("looking for example inputs")
        example = given or beside or example_inputs_of(model, None, None)
        if not given and beside is None:
            note(
                f"no example inputs given; these fit: {'; '.join(loading.describe(example))}. "
                "Memory and time depend on them: give yours with --input, or as example_inputs in the file"
            )
        return model, example


def load_model(target: str, show: ShowStage) -> "nn.Module":
    """Load the model alone."""
    from dni_fx import model as loading

    show(f"loading {target}")
    with contextlib.redirect_stdout(sys.stderr):
        return loading.load_target(target)[0]


def load_saved(folder: Path, specs: list[str] | None) -> "tuple[DecoupledModule, Inputs]":
    """Load the net in a folder that `rewrite` wrote, and make inputs for it."""
    from dni_fx import store
    from dni_fx.model import inputs_like, parse_specs

    if "" not in sys.path:
        sys.path.insert(0, "")  # model.py and plan.json may name modules in the current folder
    try:
        net = store.load(folder)
    except SourceError:
        raise DniFxError(
            f"{folder} needs the model that it was made from: dni-fx check model.py --cuts {folder}"
        ) from None
    return net, parse_specs(specs) if specs else inputs_like(net.dni.plan.inputs)


def named(text: str) -> Any:
    """What FILE.py:NAME names."""
    from dni_fx.model import load_attribute

    return load_attribute(text)


def batches_of(text: str) -> Callable[[], Iterator[Any]]:
    """The person's batches; an error in their code is one line with its place."""
    from dni_fx.model import errors_of

    value = named(text)

    def batches() -> Iterator[Any]:
        with errors_of(text):
            yield from value() if callable(value) else value

    return batches
