"""Synthesizers: small networks that predict the gradient of an activation (Jaderberg et al. 2017, Sect. 2).

In: an activation, and labels or another context. Out: a prediction of the same shape.
"""

from dni_fx.synthesizers.attention import Attention
from dni_fx.synthesizers.base import Activation, Factory, Synthesizer, centered, zero_
from dni_fx.synthesizers.carried import Carried
from dni_fx.synthesizers.context import check_labels, expand_context
from dni_fx.synthesizers.crossings import activation_of, factories, make_synthesizer, settings_at
from dni_fx.synthesizers.exit_heads import head_flops, make_head, of_target_size
from dni_fx.synthesizers.exits import ExitGradient, ExitOptions, exit_names, exit_options
from dni_fx.synthesizers.feedforward import MLP, Conv, Linear, Zero
from dni_fx.synthesizers.foreign import adapt
from dni_fx.synthesizers.heads import GuidedHead
from dni_fx.synthesizers.imported import is_findable, why_not_importable
from dni_fx.synthesizers.least_squares import LeastSquares
from dni_fx.synthesizers.loss_scale import LossScale
from dni_fx.synthesizers.recurrent import GRU, LSTM, RNN
from dni_fx.synthesizers.registry import (
    FOR_MAPS,
    REGISTRY,
    import_synthesizers,
    options_of,
    paths_of,
    register,
    resolve,
)

__all__ = [
    "FOR_MAPS",
    "GRU",
    "LSTM",
    "MLP",
    "REGISTRY",
    "RNN",
    "Activation",
    "Attention",
    "Carried",
    "Conv",
    "ExitGradient",
    "ExitOptions",
    "Factory",
    "GuidedHead",
    "LeastSquares",
    "Linear",
    "LossScale",
    "Synthesizer",
    "Zero",
    "activation_of",
    "adapt",
    "centered",
    "check_labels",
    "exit_names",
    "exit_options",
    "expand_context",
    "factories",
    "head_flops",
    "import_synthesizers",
    "is_findable",
    "make_head",
    "make_synthesizer",
    "of_target_size",
    "options_of",
    "paths_of",
    "register",
    "resolve",
    "settings_at",
    "why_not_importable",
    "zero_",
]
