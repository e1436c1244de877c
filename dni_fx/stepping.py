"""step="segment": every segment has an optimizer of its own, which steps as soon as the segment has gone backward."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dni_fx.errors import DniFxError
from dni_fx.interfaces import owned_parameters
from dni_fx.module import DecoupledModule
from dni_fx.settings import Training

__all__ = ["OptimizerFactory", "SegmentOptimizer", "check_stepping"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class SegmentOptimizer(torch.optim.Optimizer):
    """The optimizers of all segments, in the place of one.

    Each steps right after the backward pass of its segment, and frees the segment's gradients: those of one segment
    are alive at a time. A synthesizer is trained, and so steps, together with the segment above it. A parameter that
    several segments use waits for the last of them.

    The training loop stays as it is: `zero_grad()` and `step()` find nothing left to do. Learning-rate schedulers take
    this for an optimizer; `state_dict()` holds the state of all of them.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        factory: Makes an optimizer from parameters, or from groups of them; called once for each segment.
        training: How the synthesizers are trained: with which rate, or which optimizer.
        accumulate: Step at every such pass of a segment only; the gradients in between add up.
        scaler: The one that scales the loss. The segments step through it; `scaler.step(optimizer)` in the loop finds
            nothing left to do, `scaler.update()` belongs there.

    Raises:
        DniFxError: If an argument is wrong.
    """

    _step_supports_amp_scaling = True  # so a GradScaler does not look for gradients

    def __init__(
        self,
        net: DecoupledModule,
        factory: OptimizerFactory,
        *,
        training: Training | None = None,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        check_stepping(factory, accumulate)
        self.accumulate = accumulate
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        if self.scaler is not None:  # segments step before the loss is scaled for the first time
            self.scaler.scale(torch.zeros((), device=next(net.parameters()).device))
        training = training or (net.dni.plan.rewrite.training if net.dni.plan.rewrite else Training())
        owned = owned_parameters(net, net.dni)
        self.optimizers = [_optimizers(*parameters, factory, training) for parameters in owned]
        if not any(self.optimizers):
            raise DniFxError("no segment has a parameter to train")
        super().__init__([p for parameters in owned for part in parameters for p in part], {})
        self.param_groups = [group for inner in self._every() for group in inner.param_groups]
        self._passes = [0] * len(owned)
        self._finished: set[int] = set()  # segments that have gone backward in the pass that is under way
        self._local = False
        self._task = -1  # the backward pass of the loss that was seen last
        for index in range(len(net.dni.plan.cuts)):
            segment: Any = net.dni.get_submodule(f"segment{index}")
            segment.tell(index, optimizer=self)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._arrived)
        net.dni.optimizer = self

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Does nothing: the segments have stepped."""
        if closure is not None:
            raise DniFxError('step="segment" takes no closure: the segments step while the net runs')

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: gradients are freed when they have been used, and add up until then."""

    def state_dict(self) -> dict[str, Any]:
        """Of all optimizers, by segment."""
        return {"segments": [[o.state_dict() for o in own] for own in self.optimizers], "passes": list(self._passes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict()` gave, of the same net with the same cuts."""
        stored = state_dict.get("segments")
        if stored is None or [len(own) for own in stored] != [len(own) for own in self.optimizers]:
            raise DniFxError("the state is not that of an optimizer of the same segments")
        for own, states in zip(self.optimizers, stored, strict=True):
            for optimizer, state in zip(own, states, strict=True):
                optimizer.load_state_dict(state)
        self._passes = list(state_dict["passes"])
        self.param_groups = [group for inner in self._every() for group in inner.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "optimizers") and self.param_groups:
            raise DniFxError('step="segment" knows no segment for new parameters: give them an optimizer of their own')
        super().add_param_group(param_group)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a net has no optimizer: its parameters are others."""
        return type(None), ()

    @contextlib.contextmanager
    def local(self, index: int) -> Iterator[None]:
        """Around the local backward pass of a segment: then it steps."""
        self._local = True
        try:
            yield
        finally:
            self._local = False
        self._finish(index)

    def _arrived(self, _parameter: Tensor) -> None:
        """A gradient, outside of local backward passes: so of the last one of a step, after which all are there."""
        task = torch._C._current_graph_task_id()
        if not self._local and task != self._task:
            self._task = task
            # After all that others have queued, such as DistributedDataParallel, which averages gradients.
            engine: Any = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self._finish_all))

    def _finish_all(self) -> None:
        for index in range(len(self.optimizers)):
            if index not in self._finished:
                self._finish(index)
        self._finished.clear()

    def _finish(self, index: int) -> None:
        self._finished.add(index)
        self._passes[index] += 1
        if self._passes[index] % self.accumulate == 0:
            for optimizer in self.optimizers[index]:
                if self.scaler is None:
                    optimizer.step()
                elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                    self.scaler.step(optimizer)
                optimizer.zero_grad()

    def _every(self) -> Iterator[torch.optim.Optimizer]:
        for own in self.optimizers:
            yield from own


def check_stepping(factory: object, accumulate: object) -> None:
    """Raise a DniFxError if `SegmentOptimizer` could not be made with these."""
    if not callable(factory) or isinstance(factory, torch.optim.Optimizer):
        raise DniFxError('step="segment" needs optimizer=, a function from parameters to one, such as torch.optim.Adam')
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise DniFxError(f"accumulate={accumulate!r}: a number of passes, 1 or more")


def _optimizers(
    own: list[nn.Parameter], synthesizers: list[nn.Parameter], factory: OptimizerFactory, training: Training
) -> list[torch.optim.Optimizer]:
    """Of one segment: its own, with the synthesizers as one more group; or those have one of theirs."""
    made = [_made(factory, own)] if own else []
    if synthesizers and training.optimizer is not None:
        made.append(_made(training.optimizer, synthesizers))
    elif synthesizers and made:
        made[0].add_param_group({"params": synthesizers, "lr": made[0].param_groups[0]["lr"] * training.lr})
    elif synthesizers:
        made.append(_made(factory, synthesizers))
        for group in made[0].param_groups:
            group["lr"] *= training.lr
    return made


def _made(factory: OptimizerFactory, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = factory(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise DniFxError(f'step="segment": optimizer= made a {type(optimizer).__name__}, not a torch optimizer')
    return optimizer
