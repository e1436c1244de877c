"""The user's model: load it, call it, run it without changing it.

In: a target as text, or a module. Out: the module, its example inputs, the arguments of its calls.
"""

from dni_fx.model.attributes import REGISTERED, at_path, expression, has_path, is_hidden
from dni_fx.model.call import Path, by_name, by_path, canonical, with_arguments, with_leaves
from dni_fx.model.captured import Captured
from dni_fx.model.inputs import Inputs, describe, tensors_in, to_inputs
from dni_fx.model.loading import errors_of, load_target
from dni_fx.model.preserve import in_train_mode, preserved, seed
from dni_fx.model.probe import probe
from dni_fx.model.specs import inputs_like, parse_specs

__all__ = [
    "REGISTERED",
    "Captured",
    "Inputs",
    "Path",
    "at_path",
    "by_name",
    "by_path",
    "canonical",
    "describe",
    "errors_of",
    "expression",
    "has_path",
    "in_train_mode",
    "inputs_like",
    "is_hidden",
    "load_target",
    "parse_specs",
    "preserved",
    "probe",
    "seed",
    "tensors_in",
    "to_inputs",
    "with_arguments",
    "with_leaves",
]
