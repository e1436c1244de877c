"""Save and load: a folder for a rewritten model, a checkpoint file for a training run.

In: a rewritten net. Out: files, and the net again.
"""

from dni_fx.store.checkpoint import load_checkpoint, save_checkpoint
from dni_fx.store.destination import check_destination
from dni_fx.store.folder import load, save

__all__ = ["check_destination", "load", "load_checkpoint", "save", "save_checkpoint"]
