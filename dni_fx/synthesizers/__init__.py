"""Synthesizers: small networks that predict the gradient of an activation (Jaderberg et al. 2017, Sect. 2)."""

from dni_fx.synthesizers.adapting import adapt
from dni_fx.synthesizers.attention import Attention
from dni_fx.synthesizers.base import Activation, Factory, Synthesizer
from dni_fx.synthesizers.conditioning import check_labels, expand_context
from dni_fx.synthesizers.feedforward import MLP, Conv, Linear, Zero
from dni_fx.synthesizers.least_squares import LeastSquares
from dni_fx.synthesizers.losses import Critic, GuidedHead, LocalHead, LossHead, Outcome
from dni_fx.synthesizers.recurrent import GRU, LSTM, RNN, Carried
from dni_fx.synthesizers.registry import REGISTRY, register, resolve

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "REGISTRY",
    "RNN",
    "Activation",
    "Attention",
    "Carried",
    "Conv",
    "Critic",
    "Factory",
    "GuidedHead",
    "LeastSquares",
    "Linear",
    "LocalHead",
    "LossHead",
    "Outcome",
    "Synthesizer",
    "Zero",
    "adapt",
    "check_labels",
    "expand_context",
    "register",
    "resolve",
]
