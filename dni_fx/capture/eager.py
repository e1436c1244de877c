"""The eager model on the example inputs: the results that every capture is compared with, and its side effects."""

import contextlib
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dni_fx.capture.axes import Run, batch_size, runs_at_other_batch_sizes
from dni_fx.capture.effects import Effect, effects_of_forward
from dni_fx.capture.places import failing_line
from dni_fx.capture.runs import Outcome, call, train_step
from dni_fx.errors import CaptureError, DniFxError, first_line
from dni_fx.model import Inputs, Snapshot, describe

__all__ = ["Eager"]


class Eager:
    """The eager model, its example inputs, and its results, each computed once.

    Attributes:
        step: The outcome of a training step.
        no_graph: The reason why no graph computes the same as the model; empty if there is none.
        whole: The modules that a graph must keep whole, by name, each with the reason.

    Raises:
        DniFxError: If the model does not run on the inputs, or returns no tensor that carries gradient.
        CaptureError: If forward has an effect that no front end takes.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self._effects: list[Effect] = []
        self._after: list[tuple[dict[str, Any], tuple[Any, ...]]] = []  # attributes and generators, after each call
        self._watches = True  # False: forward has an operator, such as torch.cond, that does not run while watched
        self.step = self._train_step()
        refused = next((effect for effect in self._effects if effect.remedy), None)
        if refused is not None:
            raise CaptureError(f"{refused.text}, {refused.remedy}")
        if not self.step.gradients and any(p.requires_grad for p in model.parameters()):
            name = type(model).__name__
            raise DniFxError(f"forward of {name} returns no tensor that carries gradient to a parameter")
        self.whole = {effect.module: effect.text for effect in reversed(self._effects) if effect.module}
        self.no_graph = self._why_no_graph()
        self._after.clear()

    @cached_property
    def in_eval_mode(self) -> tuple[Outcome, bool] | None:
        """The outcome in eval mode, and whether it needed gradients; None if the model does not run in eval mode."""
        for with_grad in (False, True):  # forward may differentiate itself
            try:
                return call(self.model, self.model, self.inputs, train=False, with_grad=with_grad), with_grad
            except DniFxError:
                raise
            except Exception:  # user code may raise any error
                continue
        return None

    @cached_property
    def other_batches(self) -> list[Run[Outcome]]:
        """The runs in train mode with other batch sizes that the model takes."""

        def run(inputs: Inputs) -> Outcome | None:
            try:
                return call(self.model, self.model, inputs, train=True, with_grad=True)
            except DniFxError:
                raise
            except Exception:  # user code may raise any error, if the model does not take this batch size
                return None

        found: list[Run[Outcome]] = []
        for rows in _other_batch_sizes(self.inputs):
            other = runs_at_other_batch_sizes(self.inputs, run, [rows], found[0].axes if found else ())
            if other is not None:
                found.append(other)
        return found

    def _train_step(self) -> Outcome:
        while True:
            backward = self._blamed("the backward pass fails")
            try:
                return train_step(self.model, self.model, self.inputs, self._observed, backward)
            except DniFxError:
                if not self._watches or any(effect.remedy for effect in self._effects):
                    raise
            self._watches = False
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # it remembers the failure
            self._effects.clear()
            self._after.clear()

    @contextlib.contextmanager
    def _observed(self, before: Snapshot) -> Iterator[None]:
        """Run forward, and see its effects."""
        watching: AbstractContextManager[None] = nullcontext()
        if self._watches:
            watching = effects_of_forward(self.model, before.tensors(), self._effects)
        with watching, self._blamed("the model does not run on the example inputs"):
            yield
        for name in before.reshaped_buffers():
            owner = name.rpartition(".")[0]
            self._effects.append(Effect(f"forward changes the shape of the buffer {name!r}", owner))
        self._after.append((_attributes(self.model), _generator_states()))

    @contextlib.contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # user code may raise any error
            place, line = failing_line(error)
            where = f"{place}: {line!r}: " if place else ""
            known = next(
                (f". {e.text}, {e.remedy}" for e in self._effects if e.remedy), _misplaced(self.model, self.inputs)
            )
            inputs = "; ".join(describe(self.inputs))
            raise DniFxError(f"{what} ({inputs}): {where}{first_line(error)}{known}") from None

    def _why_no_graph(self) -> str:
        (first, _), (second, drawn) = self._after
        changed = [name for name, value in second.items() if first.get(name, value) is not value]
        effect = next((e.text for e in self._effects if not e.module), "")
        if effect:
            return f"{effect}, which no graph does"
        if changed:
            return f"forward assigns {changed[0]} at every call, which no graph does"
        if drawn != self._after[0][1]:
            return "forward draws random numbers from Python or numpy, which a graph would fix"
        return ""


def _misplaced(model: nn.Module, inputs: Inputs) -> str:
    """A hint, if keyword arguments were given as one positional argument: a batch of Hugging Face is such a dict."""
    first = inputs.args[0] if len(inputs.args) == 1 else None
    if isinstance(first, Mapping) and first.keys() <= inspect.signature(model.forward).parameters.keys():
        return ". The example is one dict: give keyword arguments as example_kwargs"
    return ""


def _generator_states() -> tuple[Any, ...]:
    """The states of Python's and numpy's random number generators."""
    numpy = sys.modules.get("numpy")
    _, keys, position, *_ = (None, b"", 0) if numpy is None else numpy.random.get_state()
    return random.getstate(), bytes(keys), position


def _attributes(model: nn.Module) -> dict[str, Any]:
    """The plain attributes of all modules, by path: no parameters, buffers or submodules.

    Equal numbers and equal strings are one object, so that `is` compares them by value.
    """
    return {
        f"{path}.{name}".lstrip("."): sys.intern(repr(value)) if isinstance(value, int | float | str) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") or isinstance(value, Tensor)
    }


def _other_batch_sizes(inputs: Inputs) -> list[int]:
    """One row more than in the example; and one row, which the last batch of an epoch may have."""
    rows = batch_size(inputs)
    return [rows + 1, 1] if rows > 1 else [rows + 1] if rows else []
