"""step="segment": every segment has its own optimizer, which steps right after the segment's backward pass."""

import copy
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError
from dni_fx.model import tensors_in
from dni_fx.ops import parameters_of
from dni_fx.runtime.module import DecoupledModule, rewritten
from dni_fx.runtime.optimizer_states import call_each, joined_state, load_joined_state
from dni_fx.runtime.optimizers import check_stepping, optimizers_of
from dni_fx.runtime.parameter_groups import OptimizerFactory
from dni_fx.runtime.parameters import owned_parameters
from dni_fx.runtime.replaced import take_parameters
from dni_fx.runtime.watch import watch
from dni_fx.settings import Training

__all__ = ["SegmentOptimizer"]


class Pass(enum.Enum):
    """Where the net is in a pass: a forward pass of the net, and the backward pass of its loss."""

    IDLE = "no segment has run its local backward pass since the last pass ended"
    RUNNING = "segments have run their local backward passes; the backward pass of the loss has not ended"
    ZEROED = "running, and then zero_grad() was called"


# [Note: the states of a pass]
# A pass of a segment is one backward pass that gives it gradients; its optimizers step at every `accumulate`-th pass.
# Segments that run a local backward pass have their pass during the forward pass of the net. All others (the last one;
# in the warm-up and with unlock="none", every one) have it in the backward pass of the loss.
#
# After zero_grad() in RUNNING, the training loop goes on either with loss.backward() (it calls zero_grad() between
# forward and backward), or with the next forward pass (it skipped the batch). The next event shows which.
#
#   event               | IDLE                       | RUNNING               | ZEROED
#   --------------------+----------------------------+-----------------------+------------------------------
#   pre_backward(i)     | -                          | -                     | _end_skipped_batch -> IDLE
#   post_backward(i)    | _end_pass_of(i) -> RUNNING | _end_pass_of(i)       | _end_pass_of(i)
#   zero_grad()         | _free                      | _free -> ZEROED       | _free
#   post_loss_backward  | _end_batch                 | _end_batch -> IDLE    | _end_batch -> IDLE
#
#   _end_pass_of(i):     count the pass; at every `accumulate`-th, step and free the gradients
#   _end_skipped_batch:  _end_pass_of all segments that had no pass since IDLE
#   _end_batch:          the same, but only of segments with new gradients (torch.autograd.grad gives none);
#                        raise an error if a segment got a gradient after its step
#   _free:               gradients of segments that have just stepped: a failed backward pass left them
#
# A backward pass of the loss that fails has no post_loss_backward: the next zero_grad() of the loop leads to ZEROED.


class SegmentOptimizer(torch.optim.Optimizer):
    """The optimizers of all segments, as one optimizer.

    Each steps right after the backward pass of its segment, and frees the segment's gradients: only one segment has
    gradients at a time. A synthesizer steps together with the segment above it. A parameter that several segments use
    steps with the last of these segments.

    The training loop stays as it is: `zero_grad()` and `step()` have nothing left to do. Learning-rate schedulers work
    as with any optimizer; `state_dict()` holds the states of all optimizers. Each call of the net is a step of every
    segment with a cut above it: two calls before one backward pass are two steps of these segments, and one step of the
    last. A batch that is skipped after the net has run forward is a step of these segments, too.

    A `SegmentListener` of every segment that has a cut above it.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        factory: Makes an optimizer from parameters, or from groups of parameters; called once for each segment.
        training: How the synthesizers are trained: the learning rate, or an optimizer.
        accumulate: Passes of a segment for each step; their gradients add up. The loop divides the loss by this number,
            and calls `zero_grad()` before every pass. None: that of the net.
        scaler: The GradScaler of the loss. The segments step through it; `scaler.step(optimizer)` in the loop has
            nothing left to do; call `scaler.update()` there, after every `accumulate` passes. None: that of the net.

    Raises:
        DniFxError: If an argument is wrong.
    """

    _step_supports_amp_scaling = True  # else a GradScaler asserts that there are gradients

    def __init__(
        self,
        net: DecoupledModule,
        factory: OptimizerFactory,
        *,
        training: Training | None = None,
        accumulate: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        check_stepping(factory)
        check_arguments({"training": training, "accumulate": accumulate, "scaler": scaler}, "SegmentOptimizer")
        net = rewritten(net)
        if isinstance(net.dni.optimizer, SegmentOptimizer):
            net.dni.optimizer.remove()
        accumulate = net.dni.accumulate if accumulate is None else accumulate
        scaler = net.dni.scaler if scaler is None else scaler
        net.dni.scale_with(scaler, accumulate=accumulate)
        self.accumulate: int = accumulate or 1
        self.scaler: torch.amp.GradScaler | None = scaler if scaler is not None and scaler.is_enabled() else None
        if self.scaler is not None:
            # The first loss that is scaled makes a scaler ready, but segments step before that.
            self.scaler.scale(torch.zeros((), device=next(net.parameters()).device))
        training = training or net.dni.rewrite.training
        self._made_with = factory, training, accumulate
        owned = owned_parameters(net, net.dni)
        self.optimizers = [optimizers_of(parameters, factory, net.dni, training) for parameters in owned]
        if not any(self.optimizers):
            raise DniFxError("no segment has a parameter to train")
        if len({id(o) for o in self._every()}) < sum(len(own) for own in self.optimizers):
            raise DniFxError('step="segment": optimizer= gave the same optimizer twice: make a new one at every call')
        defaults = next(self._every()).defaults  # schedulers read them
        super().__init__([p for parameters in owned for p in parameters.every()], defaults)
        self.param_groups = [group for inner in self._every() for group in inner.param_groups]
        self._pass = Pass.IDLE
        self._reached: set[int] = set()  # segments that had their pass since IDLE
        self._passes = [0] * len(owned)  # of each segment, so far
        self._gradients_before: list[list[tuple[int, int]]] = [[] for _ in owned]  # after the last pass of each segment
        self._loss_task = -1  # autograd's number of the last backward pass of the loss
        self._names = {parameter: name for name, parameter in net.named_parameters()}
        self._handle = net.register_forward_hook(_post_forward)
        self._segments = net.dni.segments
        for segment in self._segments:
            segment.listeners.append(self)  # behind the averaging of gradients
        net.dni.optimizer, net.dni.unstepped = self, False
        watch(net).places = take_parameters(net)
        self._net = net

    def remove(self) -> None:
        """Detach this from the net, whose segments step no more."""
        self._handle.remove()
        self._net.dni.optimizer = None
        for segment in self._segments:
            segment.listeners = [listener for listener in segment.listeners if listener is not self]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do nothing: the segments have stepped. Or run a closure once, in which the net runs and the segments step.

        A GradScaler calls this after it has looked at the gradients, or divided them by its factor.

        Returns:
            The result of the closure.
        """
        result = None
        made = any(self._passes) or any(optimizer.state for optimizer in self._every())
        if not made and not any(group.get("lr", 0) for group in self.param_groups):
            # torch.distributed.checkpoint makes the states by a step with gradients and rates of zero.
            for optimizer in self._every():
                optimizer.step()
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.scaler is not None and self.accumulates:
            self._after_look_of_scaler()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free gradients that a failed backward pass has left; all others are freed when they have been used.

        If the net then runs again before the backward pass of the loss, a batch was skipped: it counts as a pass.
        """
        if self._pass is Pass.RUNNING:
            self._pass = Pass.ZEROED
        self._free()

    def train(self) -> None:
        """Let the optimizers that have a mode, as schedule-free ones do, enter that of training."""
        call_each(self._every(), "train")

    def eval(self) -> None:
        """Let the optimizers that have a mode enter that of evaluation."""
        call_each(self._every(), "eval")

    @property
    def accumulates(self) -> bool:
        """Whether the next pass adds to gradients of a pass before."""
        return any(passes % self.accumulate for passes in self._passes)

    def state_dict(self) -> dict[str, Any]:
        """The states of all optimizers, in the form of one; and the passes of each segment."""
        return joined_state(self.optimizers) | {"passes": list(self._passes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the states of all optimizers from a `state_dict()` of the same net with the same cuts."""
        load_joined_state(self.optimizers, state_dict)
        self._passes = list(state_dict.get("passes", [0] * len(self.optimizers)))
        for index, passes in enumerate(self._passes):  # no state holds the gradients of passes before a step
            if not self._with_gradients(index):
                self._passes[index] -= passes % self.accumulate
        self.param_groups = [group for inner in self._every() for group in inner.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "optimizers") and self.param_groups:
            raise DniFxError('step="segment" knows no segment for new parameters: give them an optimizer of their own')
        super().add_param_group(param_group)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy by itself is None: a copied net has other parameters."""
        return type(None), ()

    def copy_for(self, net: DecoupledModule) -> torch.optim.Optimizer | None:
        """Give a copy of the net an optimizer like this, with a copy of the states; None if the factory fails."""
        factory, training, accumulate = self._made_with
        try:
            made = SegmentOptimizer(net, factory, training=training, accumulate=accumulate, scaler=self.scaler)
            made.load_state_dict(copy.deepcopy(self.state_dict()))
        except Exception:  # a factory may run once only; a copy that is trained nevertheless gives a warning
            net.dni.unstepped = True
            return None
        return made

    def pre_backward(self, index: int) -> None:
        """Before the local backward pass of a segment."""
        if self._pass is Pass.ZEROED:
            self._end_skipped_batch()

    def post_backward(self, index: int) -> None:
        """After the local backward pass of a segment: its optimizers step."""
        if self._net.dni.averaging is not None:
            self._net.dni.averaging.wait()
        if self._pass is Pass.IDLE:
            self._pass = Pass.RUNNING
        self._reached.add(index)
        self._end_pass_of(index)

    def post_forward(self, index: int, outputs: Sequence[Tensor]) -> None:
        """Nothing to do: the segment's pass is in the backward pass of the loss."""

    def pre_loss_backward(self) -> None:
        """In the backward pass of the loss, when it reaches the outputs of the net."""
        task = torch._C._current_graph_task_id()
        if task != self._loss_task:
            self._loss_task = task
            # A callback of a callback runs after all others, such as that of DistributedDataParallel, which averages
            # gradients.
            engine: Any = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self.post_loss_backward))

    def post_loss_backward(self) -> None:
        """At the end of the backward pass of the loss."""
        self._end_batch()
        if self.scaler is not None and self.accumulate > 1:
            # scaler.step(optimizer) after the next pass, too: a GradScaler refuses a second one before its update().
            self.scaler._per_optimizer_states.pop(id(self), None)

    def _after_look_of_scaler(self) -> None:
        """A GradScaler has looked at the gradients that accumulate, which wrote to them: those are no new ones."""
        indices = range(len(self.optimizers))
        if getattr(self, "grad_scale", self) is None and any(self._with_gradients(index) for index in indices):
            raise DniFxError(
                "scaler.unscale_(optimizer) has divided gradients that still accumulate: leave it out, and clip in the "
                "function that optimizer= is"
            )
        if self._pass is Pass.IDLE:
            self._gradients_before = [self._gradients_of(index) for index in indices]

    def _free(self) -> None:
        for index, own in enumerate(self.optimizers):
            if self._passes[index] % self.accumulate == 0:
                for optimizer in own:
                    optimizer.zero_grad()

    def _end_batch(self) -> None:
        reached = self._to_idle()
        for index in range(len(self.optimizers)):
            if index in reached:
                self._check_no_late_gradient(index)
            elif self._gradients_of(index) != self._gradients_before[index]:
                self._end_pass_of(index)

    def _end_skipped_batch(self) -> None:
        """Count the pass for all segments: else the others would accumulate over other passes from now on."""
        reached = self._to_idle()
        for index in range(len(self.optimizers)):
            if index not in reached:
                self._end_pass_of(index)

    def _to_idle(self) -> set[int]:
        """End the pass; return the segments that have had theirs."""
        reached, self._reached, self._pass = self._reached, set(), Pass.IDLE
        return reached

    def _end_pass_of(self, index: int) -> None:
        self._passes[index] += 1
        self._gradients_before[index] = self._gradients_of(index)
        if self._passes[index] % self.accumulate == 0:
            self._gradients_before[index] = []
            for optimizer in self.optimizers[index]:
                self._step_one(optimizer)
                optimizer.zero_grad()
            if index < len(self._segments):
                self._segments[index].post_step()

    def _step_one(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        elif any(p.grad is not None for p in parameters_of([optimizer])):
            try:
                self.scaler.step(optimizer)
            except RuntimeError as error:
                if "update" not in str(error):
                    raise
                raise DniFxError(
                    'step="segment" steps within the forward pass: call scaler.update() after each one (with '
                    "accumulate, after so many), also where a batch is skipped"
                ) from error

    def _check_no_late_gradient(self, index: int) -> None:
        """Raise a DniFxError if a segment got a gradient after its step: the next step would use it."""
        if self._passes[index] % self.accumulate:
            return
        late = self._with_gradients(index)
        if late:
            self._free()
            raise DniFxError(
                f'step="segment": a gradient came to {self._names.get(late[0], "a parameter")} after its segment had '
                "stepped, from a use that no graph shows: a penalty on weights in the loss (give the optimizer "
                'weight_decay), or a weight that another module uses, too; use step="loop"'
            )

    def _with_gradients(self, index: int) -> list[nn.Parameter]:
        """The parameters of a segment that have gradients."""
        return [p for p in parameters_of(self.optimizers[index]) if p.grad is not None]

    def _gradients_of(self, index: int) -> list[tuple[int, int]]:
        """The identities and versions of a segment's gradients: they change when a backward pass adds to a gradient."""
        gradients = [p.grad for p in self._with_gradients(index)]
        # `fully_shard` adds to the local tensor of a shard, whose own version stays.
        return [(id(g), getattr(g, "_local_tensor", g)._version) for g in gradients if g is not None]

    def _every(self) -> Iterator[torch.optim.Optimizer]:
        for own in self.optimizers:
            yield from own


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _post_forward(net: DecoupledModule, _args: Any, output: Any) -> None:
    outputs = [t for t in tensors_in(output) if t.requires_grad]
    optimizer = net.dni.optimizer
    if net.training and outputs and isinstance(optimizer, SegmentOptimizer):
        torch.autograd.graph.register_multi_grad_hook(outputs, lambda _: optimizer.pre_loss_backward(), mode="any")
