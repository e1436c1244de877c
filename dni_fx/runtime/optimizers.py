"""The optimizers of one segment, made by the person's function."""

import torch
from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.ops import parameters_of
from dni_fx.runtime.dni import Dni
from dni_fx.runtime.parameter_groups import OptimizerFactory, add_synthesizers, made_by, own_factory, rated_groups
from dni_fx.runtime.parameters import SegmentParameters
from dni_fx.settings import Training

__all__ = ["check_stepping", "optimizers_of"]


def check_stepping(factory: object) -> None:
    """Raise a DniFxError if this cannot be the factory of a `SegmentOptimizer`."""
    if not callable(factory) or isinstance(factory, torch.optim.Optimizer):
        raise DniFxError('step="segment" needs optimizer=, a function from parameters to one, such as torch.optim.Adam')


def optimizers_of(
    parameters: SegmentParameters, factory: OptimizerFactory, dni: Dni, training: Training
) -> list[torch.optim.Optimizer]:
    """The optimizers of one segment: the synthesizers are further groups of the first, or have their own."""
    made = [_made(factory, parameters.own, "a segment")] if parameters.own else []
    synthesizers = parameters.synthesizers
    kind = type(made[0]) if made else factory if isinstance(factory, type) else torch.optim.Optimizer
    own = own_factory(kind, synthesizers, training)
    if synthesizers and own is not None:
        made.append(_made(own, synthesizers, "the synthesizers"))
    elif synthesizers and made:
        add_synthesizers(made[0], dni, synthesizers, training)
    else:
        for rated in rated_groups(dni, synthesizers, training):
            made.append(_made(factory, rated.parameters, "the synthesizers"))
            for group in made[-1].param_groups:
                group["lr"] *= rated.rate
    return made


def _made(factory: OptimizerFactory, parameters: list[nn.Parameter], whose: str) -> torch.optim.Optimizer:
    optimizer = made_by(factory, parameters, whose)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise DniFxError(f'step="segment": optimizer= made a {type(optimizer).__name__}, not a torch optimizer')
    if isinstance(optimizer, torch.optim.LBFGS):
        raise DniFxError(
            'LBFGS runs the net again at every step, which step="segment" cannot do: use another optimizer'
        )
    if not set(parameters_of([optimizer])) <= set(parameters):
        raise DniFxError('step="segment": optimizer= made an optimizer of parameters that it was not given')
    return optimizer
