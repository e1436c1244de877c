"""The user's model: load it, call it, run it without changing it.

In: a target as text, or a module. Out: the module, its example inputs, the arguments of its calls.
"""

from dni_fx.model.adapters import is_adapter
from dni_fx.model.attributes import REGISTERED, at_path, expression, has_path, is_hidden
from dni_fx.model.call import Path, by_name, by_path, canonical, with_arguments, with_leaves
from dni_fx.model.captured import Captured
from dni_fx.model.fake import any_fake, copied, fake_mode, placed, quiet
from dni_fx.model.fixed import other_argument, same_value, shown
from dni_fx.model.inputs import Axis, Inputs, describe, tensors_in, to_inputs
from dni_fx.model.loading import errors_of, load_attribute, load_target
from dni_fx.model.preserve import in_train_mode, preserved, seed
from dni_fx.model.probe import probe
from dni_fx.model.reads import MODE, Read, Reads, text_of, value_of
from dni_fx.model.seen import Step, value_at
from dni_fx.model.sharded import (
    gather_again,
    is_shard,
    is_sharded,
    meshes_in,
    own_part,
    parameter_groups,
    running_states,
    states_in,
)
from dni_fx.model.snapshot import Snapshot
from dni_fx.model.specs import inputs_like, parse_specs

__all__ = [
    "MODE",
    "REGISTERED",
    "Axis",
    "Captured",
    "Inputs",
    "Path",
    "Read",
    "Reads",
    "Snapshot",
    "Step",
    "any_fake",
    "at_path",
    "by_name",
    "by_path",
    "canonical",
    "copied",
    "describe",
    "errors_of",
    "expression",
    "fake_mode",
    "gather_again",
    "has_path",
    "in_train_mode",
    "inputs_like",
    "is_adapter",
    "is_hidden",
    "is_shard",
    "is_sharded",
    "load_attribute",
    "load_target",
    "meshes_in",
    "other_argument",
    "own_part",
    "parameter_groups",
    "parse_specs",
    "placed",
    "preserved",
    "probe",
    "quiet",
    "running_states",
    "same_value",
    "seed",
    "shown",
    "states_in",
    "tensors_in",
    "text_of",
    "to_inputs",
    "value_at",
    "value_of",
    "with_arguments",
    "with_leaves",
]
