"""The proof of exits: of all units, with constant weights, an exit gives backpropagation's own gradient."""

from typing import Any

from torch import Tensor

from dni_fx.compiler import rewrite
from dni_fx.model import at_path, tensors_in
from dni_fx.proof.compare import close
from dni_fx.proof.step import context_of, output_gradients, step, without_dni
from dni_fx.proof.subject import Subject, uncut
from dni_fx.runtime import DecoupledModule
from dni_fx.settings import Settings
from dni_fx.synthesizers import exit_options

__all__ = ["exits_of_all_units"]

_ALL = "exit(units='all', weights='readonly')"


def exits_of_all_units(subject: Subject) -> tuple[bool, str]:
    """Exits of all units give the gradients of backpropagation; name the parameters of the model that exits train."""
    if subject.tensors:
        return True, "not compared: there is a cut in time"
    captured = uncut(subject.exact, subject.precise)
    net = rewrite(captured, subject.exact.dni.plan, _ALL, Settings(subject.unlock, loss=loss_of_step))
    found = step(net, subject.precise, context_of(net, subject.precise))
    passed, figure = close(without_dni(found.gradients), subject.backprop.gradients, narrow=found.narrow)
    return passed, f"{figure}; {_trained(subject.net)}"
