"""A net under proof: copies of it in float64, and copies whose synthesizers predict given gradients."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dni_fx import ops
from dni_fx.capture import annotate, capture_by_modules
from dni_fx.compiler import restore, rewrite
from dni_fx.errors import DniFxError, first_line
from dni_fx.graph import has_record, record_of, set_record
from dni_fx.model import Inputs
from dni_fx.plans import Plan, StateTensor, crossing_name, time_name
from dni_fx.proof.compare import close
from dni_fx.proof.scripted import Scripted, scripted_synthesizers
from dni_fx.proof.step import StepResult, context_of, step, without_dni
from dni_fx.runtime import Crossing, DecoupledModule, add_time_cuts, plain
from dni_fx.settings import Settings
from dni_fx.synthesizers import activation_of

__all__ = ["Subject", "in_float64", "uncut"]

_log = logging.getLogger(__name__)


class Subject:
    """A copy of the net under proof, and what all checks compare with.

    Attributes:
        net: The copy.
        model: The plain model.
        keys: Those of the plain model's state_dict.
        exact: The net in float64, where the model runs in float64; `precise` are its inputs.
        backprop: One step of backpropagation through the model without cuts.
        through: The same step with all cuts, whose boundaries let the true gradient through.
        truth: The true gradients, by crossing: what perfect synthesizers would predict.
    """

    def __init__(self, net: DecoupledModule, inputs: Inputs) -> None:
        self.net, self.inputs = net, inputs
        original = net.dni_captured.original
        self.keys = list((original if original is not None else plain(net)).state_dict())
        self.model = restore(net)
        self.unlock = net.dni.rewrite.unlock
        self.tensors = [tensor for state in net.dni.plan.states for tensor in state.tensors]
        self.exact, self.precise, backprop = in_float64(net, inputs, self.tensors)
        self._uncut = self.exact.dni_uncut()
        self._through_cuts = self.scripted("none", mix=1.0)
        self._with_gradients = self.scripted(self.unlock)
        self.backprop, self.through, self.truth = self.true_gradients(self.precise, backprop)
        _check_finite(self.backprop.gradients, inputs)
        if not self.backprop.gradients:
            raise DniFxError("the model gives no tensor that carries gradient to a parameter")

    def in_precision(self, inputs: Inputs) -> Inputs:
        """The inputs in the precision of `exact`."""
        return inputs if self.exact is self.net else _wide(inputs)

    def true_gradients(
        self, inputs: Inputs, backprop: StepResult | None = None
    ) -> tuple[StepResult, StepResult, dict[str, Tensor]]:
        """One step of the model without cuts, one with boundaries that let the true gradient through, and the truth.

        Args:
            backprop: The first of them, where it is known.
        """
        received = scripted_synthesizers(self._through_cuts)
        for synthesizer in received.values():
            synthesizer.target = None
        backprop = backprop or step(self._uncut, inputs, state=self.tensors)
        through = step(self._through_cuts, inputs)
        truth = {name: s.target * s.samples(s.target) for name, s in received.items() if s.target is not None}
        return backprop, through, truth

    def with_gradients(self, predictions: Mapping[str, Tensor], inputs: Inputs) -> StepResult:
        """One step of the net with scripted synthesizers, which predict these gradients, and zero elsewhere."""
        for name, synthesizer in scripted_synthesizers(self._with_gradients).items():
            synthesizer.prediction = predictions.get(name)
        return step(self._with_gradients, inputs)

    def compare_with_backprop(
        self, inputs: Inputs, backprop: StepResult, through: StepResult, truth: Mapping[str, Tensor]
    ) -> tuple[bool, str]:
        """Compare the gradients of `backprop` with `through`, and with a step whose synthesizers predict `truth`."""
        for got in (through, self.with_gradients(truth, inputs)):
            passed, figure = close(without_dni(got.gradients), backprop.gradients, narrow=got.narrow)
            if not passed:
                break
        return passed, figure

    @cached_property
    def step(self) -> StepResult:
        """One step of the net, as it is."""
        return step(self.net, self.inputs, context_of(self.net, self.inputs))

    @cached_property
    def captured(self) -> DecoupledModule:
        """The captured graph of `exact`, to read."""
        return uncut(self.exact, self.precise)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the outputs."""
        return next((o.dtype for o in self.backprop.outputs), torch.float32)

    def scripted(
        self, unlock: str, predictions: Mapping[str, Tensor] | None = None, mix: float = 0.0
    ) -> DecoupledModule:
        """A copy of the net with scripted synthesizers; for another `unlock`, a new rewrite.

        Args:
            predictions: By crossing; zero for a crossing that is not there.
        """
        if unlock == self.unlock:
            made = copy.deepcopy(self.exact)
            _replace_synthesizers(made, mix)
        else:
            captured = uncut(self.exact, self.precise)
            made = rewrite(captured, _behind_units(self.exact.dni.plan), Scripted, Settings(unlock=unlock, mix=mix))
        for name, synthesizer in scripted_synthesizers(made).items():
            synthesizer.double()  # its one parameter, whatever dtype the model had when it was planned
            synthesizer.prediction = (predictions or {}).get(name)
        return made


def _behind_units(plan: Plan) -> Plan:
    """The plan with each cut where the synthetic gradient is: behind the units that run once."""
    moved = [replace(cut, after=cut.predicted[-1].node, tensors=cut.predicted) for cut in plan.cuts]
    cuts = [behind if cut.predicted != cut.tensors else cut for cut, behind in zip(plan.cuts, moved, strict=True)]
    return replace(plan, cuts=tuple(cuts))


def _check_finite(gradients: Mapping[str, Tensor], inputs: Inputs) -> None:
    """Raise a DniFxError if backpropagation on these inputs gives gradients that are not finite."""
    bad = next((name for name, gradient in gradients.items() if not gradient.to_dense().isfinite().all()), None)
    if bad is None:
        return
    for index, tensor in enumerate(inputs.tensors()):
        kind = "NaN" if tensor.isnan().any() else "inf" if tensor.isinf().any() else ""
        if kind:
            raise DniFxError(
                f"the example has {kind} in its tensor {index}, so backpropagation gives {bad} a gradient that is not "
                "finite, with which nothing can be compared: give finite inputs"
            )
    raise DniFxError(
        f"backpropagation gives {bad} a gradient that is not finite on these inputs, with which nothing can be "
        "compared: give inputs on which the model trains"
    )


def _replace_synthesizers(net: DecoupledModule, mix: float) -> None:
    """Put scripted synthesizers in the place of all others, trained in the plainest way."""
    net.dni.replay = None
    for exit in net.dni.exits.values():
        exit.is_off = True
    for index, (cut, segment) in enumerate(zip(net.dni.plan.cuts, net.dni.segments, strict=True)):
        for tensor in cut.predicted:
            name = crossing_name(index, tensor.node)
            device = net.dni.crossings[name].measured.device
            activation = activation_of(tensor, device)
            crossing = Crossing(Scripted(activation).to(device), activation, Settings(), ops.Layout.of(tensor))
            net.dni.add_module(name, crossing)
        fresh = ops.Segment(mix, index=index)
        fresh.layouts = segment.layouts
        fresh.hold(segment.held)
        net.dni.add_module(f"segment{index}", fresh)
    states = [time_name(index) for index in range(len(net.dni.plan.states))]
    if states:
        device = net.dni.crossings[states[0]].measured.device
        add_time_cuts(net.dni, dict.fromkeys(states, Scripted), Settings(), device=device)


def uncut(net: DecoupledModule, inputs: Inputs) -> DecoupledModule:
    """The captured graph, annotated."""
    if not net.dni_runs_graph:
        return capture_by_modules(restore(net), inputs)
    graph = plain(net)
    if any(not has_record(node) for node in graph.graph.nodes):  # it was loaded from a folder
        annotate(graph, inputs)
    for node in graph.graph.nodes:
        set_record(node, replace(record_of(node), segment=None))
    return graph


def in_float64(
    net: DecoupledModule, inputs: Inputs, state: Sequence[StateTensor] = ()
) -> tuple[DecoupledModule, Inputs, StepResult | None]:
    """Copy net and inputs to float64; return them as they are if the model has its dtype built in.

    Args:
        state: Outputs that get no gradient.

    Returns:
        Net, inputs, and one step of backpropagation through the copy without cuts; None if there is no copy.
    """
    exact = copy.deepcopy(net).double()
    precise = _wide(inputs)
    for node in exact.graph.nodes:  # dtypes that a capture wrote down
        node.args, node.kwargs = pytree.tree_map(_widened, (node.args, node.kwargs))
    exact.recompile()
    try:
        backprop = step(exact.dni_uncut(), precise, state=state)
    except Exception as error:  # the person's code, with a dtype that it may not expect
        _log.info("the model does not run in float64, so it is checked as it is: %s", first_line(error))
        return net, inputs, None
    is_exact = all(output.dtype in (torch.float64, torch.complex128) for output in backprop.outputs)
    return (exact, precise, backprop) if is_exact else (net, inputs, None)


def _wide(inputs: Inputs) -> Inputs:
    return inputs.map(lambda t: t.double() if t.is_floating_point() else t)


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value in (torch.float32, torch.float16, torch.bfloat16)
    return torch.float64 if narrow else value
