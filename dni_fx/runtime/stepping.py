"""step="segment": every segment has an optimizer of its own, which steps as soon as the segment has gone backward."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dni_fx.errors import DniFxError
from dni_fx.model import tensors_in
from dni_fx.runtime.dni import Dni
from dni_fx.runtime.module import DecoupledModule
from dni_fx.runtime.parameters import owned_parameters
from dni_fx.settings import Training

__all__ = ["OptimizerFactory", "SegmentOptimizer", "add_synthesizers", "attach_synthesizers", "check_stepping"]


def attach_synthesizers(optimizer: torch.optim.Optimizer, dni: Dni, training: Training) -> None:
    """Let the synthesizers' parameters be trained whenever the optimizer steps."""
    added = list(dni.parameters())
    if not added:
        return
    if training.optimizer is None:
        add_synthesizers(optimizer, dni, added, training)
        return
    own = dni.optimizer = training.optimizer(added)
    zero_grad = optimizer.zero_grad

    def step(*_: object) -> None:
        own.step()
        own.zero_grad()

    def zero_both(set_to_none: bool = True) -> None:
        zero_grad(set_to_none)
        own.zero_grad(set_to_none)

    optimizer.register_step_post_hook(step)
    optimizer.zero_grad = zero_both  # type: ignore[method-assign]  # no hook for it: a batch may be skipped


OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class SegmentOptimizer(torch.optim.Optimizer):
    """The optimizers of all segments, in the place of one.

    Each steps right after the backward pass of its segment, and frees the segment's gradients: those of one segment
    are alive at a time. A synthesizer is trained, and so steps, together with the segment above it. A parameter that
    several segments use waits for the last of them.

    The training loop stays as it is: `zero_grad()` and `step()` find nothing left to do. Learning-rate schedulers take
    this for an optimizer; `state_dict()` holds the state of all of them. Each call of the net is a step of every
    segment with a cut above it: two calls before one backward pass are two steps of these, and one of the last. A batch
    that is skipped after the net has run is a step of theirs, too.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        factory: Makes an optimizer from parameters, or from groups of them; called once for each segment.
        training: How the synthesizers are trained: with which rate, or which optimizer.
        accumulate: Step at every such pass of a segment only; the gradients in between add up. `zero_grad()` belongs
            before every pass.
        scaler: The one that scales the loss. The segments step through it; `scaler.step(optimizer)` in the loop finds
            nothing left to do, `scaler.update()` belongs there, after every `accumulate` passes.

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
        if not isinstance(net, DecoupledModule):
            raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
        if isinstance(net.dni.optimizer, SegmentOptimizer):
            net.dni.optimizer.remove()
        self.accumulate = accumulate
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        if self.scaler is not None:
            net.dni.scale_with(self.scaler)
            # It is made ready by the first loss that it scales, but segments step before that.
            self.scaler.scale(torch.zeros((), device=next(net.parameters()).device))
        training = training or (net.dni.plan.rewrite.training if net.dni.plan.rewrite else Training())
        owned = owned_parameters(net, net.dni)
        self.optimizers = [_optimizers(*parameters, factory, net.dni, training) for parameters in owned]
        if not any(self.optimizers):
            raise DniFxError("no segment has a parameter to train")
        if len({id(o) for o in self._every()}) < sum(len(own) for own in self.optimizers):
            raise DniFxError('step="segment": optimizer= gave the same optimizer twice: make a new one at every call')
        defaults = next(self._every()).defaults  # schedulers look at them
        super().__init__([p for parameters in owned for part in parameters for p in part], defaults)
        self.param_groups = [group for inner in self._every() for group in inner.param_groups]
        self._passes = [0] * len(owned)
        self._before: list[list[tuple[int, int]]] = [[] for _ in owned]  # gradients after the pass before, by versions
        self._finished: set[int] = set()  # segments that have gone backward in the pass that is under way
        self._begins_anew = False  # zero_grad() was called while a pass was under way
        self._task = -1  # the backward pass of the loss that was seen last
        self._names = {parameter: name for name, parameter in net.named_parameters()}
        self._handle = net.register_forward_hook(_watch)
        self._segments = net.dni.segments
        for index, segment in enumerate(self._segments):
            segment.tell(index, optimizer=self)
        net.dni.optimizer = self
        self._net = net

    def remove(self) -> None:
        """Let go of the net, which trains no more by itself."""
        self._handle.remove()
        self._net.dni.optimizer = None
        for segment in self._segments:
            segment.tell(segment.index, optimizer=None)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Does nothing: the segments have stepped."""
        if closure is not None:
            raise DniFxError('step="segment" takes no closure: the segments step while the net runs')

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees what a backward pass that failed has left; other gradients are freed when they have been used.

        If the net runs again before a backward pass has come to its end, a batch was skipped: that counts as a pass.
        """
        self._begins_anew = bool(self._finished)
        for index, own in enumerate(self.optimizers):
            if self._passes[index] % self.accumulate == 0:
                for optimizer in own:
                    optimizer.zero_grad()

    @property
    def accumulates(self) -> bool:
        """Whether it is between two passes whose gradients add up."""
        return any(passes % self.accumulate for passes in self._passes)

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
        """Segments of a copied net have none."""
        return type(None), ()

    @contextlib.contextmanager
    def local(self, index: int) -> Iterator[None]:
        """Around the local backward pass of a segment: then it steps."""
        if self._begins_anew:
            self._catch_up()
        yield
        self._finished.add(index)
        self._finish(index)

    def watch(self, outputs: Sequence[Tensor]) -> None:
        """When a gradient comes to the outputs, the backward pass of the loss has begun; at its end all are done."""
        torch.autograd.graph.register_multi_grad_hook(outputs, self._begun, mode="any")

    def _begun(self, _gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            # After all that others have queued, such as DistributedDataParallel, which averages gradients.
            engine: Any = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self._finish_all))

    def _finish_all(self) -> None:
        before, self._finished, self._begins_anew = self._finished, set(), False
        for index in range(len(self.optimizers)):
            if index in before:
                self._check_none_came(index)
            elif self._versions(index) != self._before[index]:  # else nothing has come: autograd.grad
                self._finish(index)

    def _catch_up(self) -> None:
        """Segments that a pass did not reach count it, too: else they would accumulate over other passes for ever."""
        reached, self._finished, self._begins_anew = self._finished, set(), False
        for index in range(len(self.optimizers)):
            if index not in reached:
                self._finish(index)

    def _finish(self, index: int) -> None:
        self._passes[index] += 1
        self._before[index] = self._versions(index)
        if self._passes[index] % self.accumulate == 0:
            self._before[index] = []
            for optimizer in self.optimizers[index]:
                self._step_one(optimizer)
                optimizer.zero_grad()
            if index < len(self._segments):
                self._segments[index].freed()

    def _step_one(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            try:
                self.scaler.step(optimizer)
            except RuntimeError as error:
                if "update" not in str(error):
                    raise
                raise DniFxError(
                    'step="segment" steps within the forward pass: call scaler.update() after each one (with '
                    "accumulate, after so many), also where a batch is skipped"
                ) from error

    def _check_none_came(self, index: int) -> None:
        """A gradient that comes to a segment after its step would be used in the next one."""
        if self._passes[index] % self.accumulate:
            return
        late = self._gradients(index)
        if late:
            self.zero_grad()
            raise DniFxError(
                f'step="segment": a gradient came to {self._names.get(late[0], "a parameter")} after its segment had '
                "stepped, from a use that no graph shows: a penalty on weights in the loss (give the optimizer "
                'weight_decay), or a weight that another module takes, too; use step="loop"'
            )

    def _gradients(self, index: int) -> list[nn.Parameter]:
        """Parameters of a segment that have one."""
        groups = [group for optimizer in self.optimizers[index] for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def _versions(self, index: int) -> list[tuple[int, int]]:
        """Of the gradients of a segment: another list, if something has been added to one."""
        return [(id(p.grad), p.grad._version) for p in self._gradients(index) if p.grad is not None]

    def _every(self) -> Iterator[torch.optim.Optimizer]:
        for own in self.optimizers:
            yield from own


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _watch(net: Any, _args: Any, output: Any) -> None:
    reached = [t for t in tensors_in(output) if t.requires_grad]
    if net.training and reached and net.dni.optimizer is not None:
        net.dni.optimizer.watch(reached)


def check_stepping(factory: object, accumulate: object) -> None:
    """Raise a DniFxError if `SegmentOptimizer` could not be made with these."""
    if not callable(factory) or isinstance(factory, torch.optim.Optimizer):
        raise DniFxError('step="segment" needs optimizer=, a function from parameters to one, such as torch.optim.Adam')
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise DniFxError(f"accumulate={accumulate!r}: a number of passes, 1 or more")


def _optimizers(
    own: list[nn.Parameter],
    synthesizers: list[nn.Parameter],
    factory: OptimizerFactory,
    dni: Dni,
    training: Training,
) -> list[torch.optim.Optimizer]:
    """Of one segment: its own, with the synthesizers as one more group; or those have one of theirs."""
    made = [_made(factory, own)] if own else []
    if synthesizers and training.optimizer is not None:
        made.append(_made(training.optimizer, synthesizers))
    elif synthesizers and made:
        add_synthesizers(made[0], dni, synthesizers, training)
    else:
        for parameters, rate in _rates(dni, synthesizers, training):
            made.append(_made(factory, parameters))
            for group in made[-1].param_groups:
                group["lr"] *= rate
    return made


def _made(factory: OptimizerFactory, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = factory(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise DniFxError(f'step="segment": optimizer= made a {type(optimizer).__name__}, not a torch optimizer')
    if isinstance(optimizer, torch.optim.LBFGS):
        raise DniFxError("LBFGS runs the net again at every step, which segments that step by themselves cannot do")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held <= {id(p) for p in parameters}:
        raise DniFxError('step="segment": optimizer= made an optimizer of parameters that it was not given')
    return optimizer


def add_synthesizers(optimizer: torch.optim.Optimizer, dni: Dni, added: list[nn.Parameter], training: Training) -> None:
    """Let an optimizer train these of the synthesizers' parameters, too, at a multiple of its learning rate."""
    for parameters, rate in _rates(dni, added, training):
        _add_group(optimizer, parameters, rate)


def _rates(dni: Dni, parameters: list[nn.Parameter], training: Training) -> list[tuple[list[nn.Parameter], float]]:
    """Those of cuts in depth and those of cuts in time, and what to multiply the learning rate by for them."""
    later = {id(p) for crossing in dni.crossings.values() if crossing.in_time for p in crossing.parameters()}
    in_depth, in_time = ([p for p in parameters if (id(p) in later) is wanted] for wanted in (False, True))
    depth_rate, time_rate = (1.0, 0.1) if training.lr is None else (training.lr, training.lr)
    return [(own, rate) for own, rate in ((in_depth, depth_rate), (in_time, time_rate)) if own]


def _add_group(optimizer: torch.optim.Optimizer, added: list[nn.Parameter], lr: float) -> None:
    params: list[Any] = list(added)
    if "param_names" in optimizer.param_groups[0]:  # then all groups need names
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        params = [(f"dni.{count + i}", p) for i, p in enumerate(added)]
    optimizer.add_param_group({"params": params, "lr": optimizer.param_groups[0]["lr"] * lr})
