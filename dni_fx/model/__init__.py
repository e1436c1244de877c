"""The person's model: load it, call it, run it and leave it as it was.

In: a target as text, or a module. Out: the module, its example inputs, calls of it.
"""

from dni_fx.model.call import Path, by_name, by_path, canonical, replaced, with_arguments
from dni_fx.model.captured import Captured
from dni_fx.model.inputs import Inputs, describe, given, tensors_in
from dni_fx.model.loading import errors_of, load_target
from dni_fx.model.preserve import in_train_mode, preserved, seed
from dni_fx.model.probe import probe
from dni_fx.model.specs import like, parse_specs

__all__ = [
    "Captured",
    "Inputs",
    "Path",
    "by_name",
    "by_path",
    "canonical",
    "describe",
    "errors_of",
    "given",
    "in_train_mode",
    "like",
    "load_target",
    "parse_specs",
    "preserved",
    "probe",
    "replaced",
    "seed",
    "tensors_in",
    "with_arguments",
]
