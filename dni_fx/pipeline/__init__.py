"""A cut net on several processes, by torch.distributed: a stage in each, which waits for no stage above it.

In: a rewritten net. Out: its stages, and the schedule that trains them.
"""

from dni_fx.pipeline.checkpoint import latest, load, save
from dni_fx.pipeline.schedule import ScheduleDecoupled
from dni_fx.pipeline.stage import Stage, stages
from dni_fx.pipeline.train import Run, Trained, train

__all__ = ["Run", "ScheduleDecoupled", "Stage", "Trained", "latest", "load", "save", "stages", "train"]
