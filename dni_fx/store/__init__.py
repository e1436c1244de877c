"""Save and load: a folder for a rewritten model, a checkpoint file for a training run.

In: a rewritten net. Out: files, and the net again.
"""

from dni_fx.store.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from dni_fx.store.destination import check_destination
from dni_fx.store.digests import has_saved_files
from dni_fx.store.folder import load, save
from dni_fx.store.replace import beside, errors_of_writing, real_path

__all__ = [
    "beside",
    "check_destination",
    "errors_of_writing",
    "has_saved_files",
    "load",
    "load_checkpoint",
    "random_state",
    "real_path",
    "save",
    "save_checkpoint",
    "set_random_state",
]
