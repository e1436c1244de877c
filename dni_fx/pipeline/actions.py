"""What a stage does in one step of a pipeline, and in which order: a function of numbers."""

import enum
from typing import NamedTuple

__all__ = ["Action", "Kind", "actions", "evaluation"]


class Kind(enum.Enum):
    """What a stage does with a microbatch."""

    RECEIVE = "take the activation of the stage below"
    LEARN = "train the synthesizers by the gradients of older microbatches that are there"
    RUN = "run forward, send the activation to the stage above, and run backward"
    SEND_TARGET = "send the gradient to the stage below"
    TAKE_TARGET = "wait for the gradient of the stage above, and train the synthesizers by it"
    UPDATE = "step the optimizer"


class Action(NamedTuple):
    """One action, with the number of its microbatch."""

    kind: Kind
    microbatch: int


def actions(
    stage: int, stages: int, microbatches: int, *, sync: bool, learns: bool = False, learns_below: bool = False
) -> list[Action]:
    """The actions of a stage in one training step.

    A stage sends an activation before its own backward pass: the stage above need not wait for that. Without `sync`, a
    stage never waits for one above it, and updates its weights after each microbatch. With it, all microbatches see
    the same weights, and each stage waits for the gradients at its upper end before it updates.

    Args:
        learns: Its synthesizers learn from the gradients of the stage above.
        learns_below: Those of the stage below learn from its gradients.
    """
    found = []
    for k in range(microbatches):
        if stage > 0:
            found.append(Action(Kind.RECEIVE, k))
        if learns and not sync:
            found.append(Action(Kind.LEARN, k))
        found.append(Action(Kind.RUN, k))
        if stage > 0 and (learns_below or sync):
            found.append(Action(Kind.SEND_TARGET, k))
        if not sync:
            found.append(Action(Kind.UPDATE, k))
    if sync:
        if stage < stages - 1:
            found += [Action(Kind.TAKE_TARGET, k) for k in range(microbatches)]
        found.append(Action(Kind.UPDATE, microbatches - 1))
    return found


def evaluation(stage: int, microbatches: int) -> list[Action]:
    """The actions of a stage that only runs forward."""
    found = []
    for k in range(microbatches):
        if stage > 0:
            found.append(Action(Kind.RECEIVE, k))
        found.append(Action(Kind.RUN, k))
    return found
