"""The exit at a cut: later nodes of the model's graph, which run on the crossing tensors up to the loss.

Its loss goes backward at once, in the forward pass, so that nothing of the exit is kept. The parameters that it trains
get their gradients later, when the target of the cut arrives, as the parameters of all synthesizers do.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dni_fx import ops
from dni_fx.model import at_path, copied, placed
from dni_fx.plans import CrossingTensor, ExitPlan
from dni_fx.runtime.exit_loss import chunked_loss, exit_loss, is_linear, leave_out_linear, sampled
from dni_fx.runtime.programs import call_unchanged, exit_program, heads_program
from dni_fx.settings import Loss
from dni_fx.synthesizers import LossScale, make_head, of_target_size

__all__ = ["Exit", "connect_exits"]

EMA = 0.995  # of the running mean of weights, from step to step


class Structure(Protocol):
    """The structure of the model's result; `flat.Calling` is the one class."""

    def unflatten(self, results: Sequence[Any]) -> Any: ...


class Exit(nn.Module):
    """Computes the gradients of the tensors that cross a cut.

    Attributes:
        program: The nodes of the exit, as a function of the crossing tensors, the inputs and the borrowed values.
        copies: With copied weights: the exit's own modules, parameters and buffers, in the order of `plan.borrowed`.
        leaves_out_linear: The program returns the arguments of its last linear layer, and the layer itself if it is a
            module.
        begin: With `plan.tokens`: the first position that the loss of the next call is of.
        is_off: The gradients are None, as in eval mode.
        trains_at_once: No target comes: parameters get the gradients of the exit in the forward pass.
    """

    _is_impure = True  # dead code elimination keeps its calls
    is_off = False
    trains_at_once = False

    def __init__(self, plan: ExitPlan, tensors: Sequence[CrossingTensor], loss: Loss | None) -> None:
        super().__init__()
        self.plan, self.tensors = plan, tuple(tensors)
        self.end_in(loss)
        self.program: fx.GraphModule | None = None
        self.copies: nn.Module | None = None
        self.structure: Structure | None = None  # of the outputs, if the graph returns a flat list
        self.loss_scale: LossScale | None = None
        self.leaves_out_linear = False
        if plan.tokens < 1:
            self.begin: Tensor
            self.register_buffer("begin", torch.zeros((), dtype=torch.long))

    @property
    def loss(self) -> Loss | None:
        """The loss of the outputs; None: the model returns its own."""
        return self._given_loss[0]

    def end_in(self, loss: Loss | None) -> None:
        """Set the loss of the outputs."""
        self._given_loss = (loss,)  # in a tuple: a loss may be a module, which is no part of the net

    def connect(self, net: fx.GraphModule) -> None:
        """Take the nodes of the exit from the graph of a captured or a rewritten net, and copy weights if asked to."""
        self.structure = getattr(net, "dni_calling", None)
        tensors = [tensor.node for tensor in self.tensors]
        graph = (heads_program if self.plan.heads else exit_program)(net, self.plan, tensors)
        returns_logits = self.structure is None and not self.plan.loss
        self.leaves_out_linear = returns_logits and leave_out_linear(graph, net, self.plan.borrowed)
        self.program = fx.GraphModule(nn.Module(), graph, "Program")
        if self.plan.heads and self.copies is None:
            self.copies = _heads(self.plan, self.tensors)
        elif self.plan.copied and self.copies is None:
            self.copies = _copies(net, self.plan)

    def forward(
        self,
        tensors: Sequence[Tensor],
        inputs: Sequence[Any] = (),
        borrowed: Sequence[Any] = (),
        context: Any = None,
        target: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the exit's mean loss for each crossing tensor; None in eval mode and where grad mode is off.

        Args:
            tensors: The crossing tensors, detached.
            inputs: The values of `plan.inputs`.
            borrowed: The values of `plan.borrowed`: submodules, parameters and buffers. Where the exit has a copy, the
                value is left out, unless the copy follows the model's weights.
            context: The second argument of the loss.
            target: Takes the place of the context if a call gives none.
        """
        if self.is_off or not (self.training and torch.is_grad_enabled()):
            return (None,) * len(tensors)
        ops.check_not_traced(tensors[0])
        program = self.program
        assert program is not None
        used = borrowed if self.copies is None else self._own(borrowed)

        def run(crossing: Sequence[Tensor]) -> Any:
            outputs = program(*crossing, *inputs, *used)
            return outputs if self.structure is None or self.plan.loss else self.structure.unflatten(outputs)

        trained = [value for index, value in enumerate(used) if self._is_trained(index)]
        return self.through(run, tensors, trained, target if context is None else context)

    def _is_trained(self, index: int) -> bool:
        """Whether the exit trains the value that it uses at this place, where `plan.trains`."""
        return bool(self.plan.heads) or self.plan.borrowed[index] not in self.plan.constant

    def through(
        self, run: Callable[[Sequence[Tensor]], Any], tensors: Sequence[Tensor], trained: Sequence[Any], context: Any
    ) -> tuple[Tensor | None, ...]:
        """The gradients of a loss of `run`, a function of the crossing tensors, as `forward` returns them.

        Args:
            run: Returns the outputs of the model, or its own loss.
            trained: The modules and parameters that the loss trains, where `plan.trains`.
        """
        if self.is_off or not (self.training and torch.is_grad_enabled()):
            return (None,) * len(tensors)
        ops.check_not_traced(tensors[0])
        parameters = _parameters(trained) if self.plan.trains else []
        found: tuple[Tensor, ...] = self._gradients(run, tensors, parameters, context)
        return found

    @torch.compiler.disable(reason=ops.ONE_BY_ONE)  # type: ignore[untyped-decorator]
    def _gradients(
        self,
        run: Callable[[Sequence[Tensor]], Any],
        tensors: Sequence[Tensor],
        parameters: Sequence[nn.Parameter],
        context: Any,
    ) -> tuple[Tensor, ...]:
        devices = list({t.device for t in tensors if t.device.type == "cuda"})
        # What the exit draws must not move the random generators of the model.
        with torch.enable_grad(), torch.random.fork_rng(devices):
            leaves = [t.detach().requires_grad_() for t in tensors]
            loss = run(leaves) if self.plan.loss else self._loss(run(leaves), context, parameters)
        with ops.without_autocast(leaves[0].device.type):
            found = ops.gradients(loss, [*leaves, *parameters])
        gradients = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=False)]
        if self.trains_at_once:
            ops.accumulate(parameters, found[len(leaves) :])
            return tuple(gradients)
        return ops.exit_gradients(gradients, parameters, found[len(leaves) :], self._factor)

    def trained_in_units(self, borrowed: Sequence[Any]) -> list[nn.Parameter]:
        """The parameters that the exit trains in units that run once.

        Where no target comes, the segment above does not train the units, so the exit does in any case.

        Args:
            borrowed: The modules and parameters that the units use.
        """
        if self.trains_at_once:
            return _parameters(borrowed)
        trains = self.plan.trains and not (self.plan.frozen_units or self.is_off)
        return _parameters(borrowed) if trains else []

    def scale_with(self, loss_scale: LossScale | None) -> None:
        """Let gradients of the exit's parameters follow the scale of the loss; None: the loss is not scaled."""
        self.loss_scale = loss_scale

    def _factor(self) -> float | Tensor | None:
        return None if self.loss_scale is None else self.loss_scale.factor()

    def _loss(self, outputs: Any, context: Any, trained: Sequence[nn.Parameter]) -> Tensor:
        assert self.loss is not None
        if self.leaves_out_linear:
            return self._loss_of_features(context, trained, *outputs)
        if self.plan.heads and isinstance(outputs, Tensor):
            outputs = of_target_size(outputs, context)
        return exit_loss(self.loss, outputs, context, features_last=self.plan.features_last)

    def _loss_of_features(
        self, context: Any, trained: Sequence[nn.Parameter], features: Tensor, last: Any, *rest: Any
    ) -> Tensor:
        """The loss of the arguments of the last linear layer: the features, and the layer or its parameters."""
        loss, factor = self.loss, None
        assert loss is not None
        if self.plan.tokens < 1:
            loss, features, context, factor = sampled(loss, features, context, self.plan.tokens, self.begin)
            self.begin += 1
        if isinstance(last, nn.Linear) and is_linear(last):  # the user may have replaced it since the rewrite
            last, rest = last.weight, (last.bias,)
        if rest and not any(last is parameter for parameter in trained):
            last, rest = last.detach(), (None if rest[0] is None else rest[0].detach(),)  # chunks hold its gradient
        value = chunked_loss(loss, features, last, rest[0], context) if rest else None
        if value is None:
            outputs = F.linear(features, last, rest[0]) if rest else call_unchanged(last, features)
            value = exit_loss(loss, outputs, context, features_last=self.plan.features_last)
        return value if factor is None else value * factor

    def _own(self, borrowed: Sequence[Any]) -> list[Any]:
        """The values to use, the exit's own copies among them; with weights="ema", these follow the model's weights."""
        assert self.copies is not None
        if self.plan.heads:
            return [getattr(self.copies, f"c{index}") for index in range(len(self.plan.heads))]
        copied, given = set(self.plan.copied), iter(borrowed)
        own = []
        for index, path in enumerate(self.plan.borrowed):
            value = next(given) if path not in copied or self.plan.weights == "ema" else None
            if path in copied:
                mine = getattr(self.copies, f"c{index}")
                if value is not None:
                    _follow(mine, value)
                value = mine
            own.append(value)
        return own


def _follow(mean: Any, now: Any) -> None:
    """Move a running mean of weights by one step."""
    with torch.no_grad():
        for one, other in zip(_tensors(mean), _tensors(now), strict=True):
            if one.is_floating_point():
                one.lerp_(other, 1 - EMA)


def connect_exits(net: fx.GraphModule) -> None:
    """Connect the exits of a rewritten net with its graph."""
    dni: Any = net.get_submodule("dni")
    if not getattr(net, "dni_runs_graph", True):
        return  # the model itself runs
    for child in dni.children():
        if isinstance(child, Exit):
            child.connect(net)
            child.train(net.training)


def _parameters(values: Sequence[Any]) -> list[nn.Parameter]:
    """The parameters to train in modules and tensors, each once."""
    found: dict[nn.Parameter, None] = {}
    for value in values:
        parameters = value.parameters() if isinstance(value, nn.Module) else [value]
        found |= {p: None for p in parameters if isinstance(p, nn.Parameter) and p.requires_grad}
    return list(found)


def _tensors(value: Any) -> list[Tensor]:
    return [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]


def _copies(net: nn.Module, plan: ExitPlan) -> nn.Module:
    """Copies of the submodules, parameters and buffers that an exit borrows."""
    copies, memo = nn.Module(), dict[int, Any]()
    for index, path in enumerate(plan.borrowed):
        if path not in plan.copied:
            continue
        value = copied(at_path(net, path), memo)
        if isinstance(value, nn.Parameter):
            copies.register_parameter(f"c{index}", value)
        elif isinstance(value, Tensor):
            copies.register_buffer(f"c{index}", value)
        else:
            copies.add_module(f"c{index}", value)
    if plan.weights == "fresh":
        for module in copies.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    if plan.weights == "ema":
        copies.requires_grad_(False)
    return copies


def _heads(plan: ExitPlan, tensors: Sequence[CrossingTensor]) -> nn.Module:
    """A small head for each output."""
    heads = nn.Module()
    for index, output in enumerate(plan.heads):
        head = make_head(tensors, output)
        assert head is not None
        heads.add_module(f"c{index}", placed(head, getattr(torch, tensors[-1].dtype)))
    return heads
