"""Capture a model again after a value that its code reads has changed: the graph may be the same."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dni_fx.capture.frontends import capture
from dni_fx.model import Captured, Inputs, Reads, at_path, has_path
from dni_fx.ops import without_autocast
from dni_fx.passes.reorder_nodes import ReorderNodes
from dni_fx.runtime import DecoupledModule

__all__ = ["Recapture"]

_MOST = 3  # captures of one net: a value that changes at every step changes the graph, or should be a buffer


@dataclass(frozen=True)
class Recapture:
    """Captures the model again, with the same example inputs and front end.

    Attributes:
        text: The graph before the rewrite.
        order: The names of its nodes.
        constants: The tensors in the graph that the model does not have, by path.
        left: How many more times this captures the model.
    """

    text: str
    order: tuple[str, ...]
    constants: Mapping[str, Tensor]
    inputs: Inputs
    frontend: str
    left: int = _MOST

    @classmethod
    def of(cls, module: DecoupledModule, inputs: Inputs, frontend: str) -> "Recapture":
        """Of a captured module that is not rewritten yet."""
        kept = inputs.map(lambda tensor: tensor.detach().cpu().requires_grad_(tensor.requires_grad))
        order = tuple(node.name for node in module.graph.nodes)
        return cls(str(module.graph), order, _constants(module), kept, frontend)

    def __call__(self, captured: Captured) -> Captured | None:
        """The facts with the values that the model has now; None: its graph is another one now, or cannot be made."""
        model = captured.original
        if model is None or not self.left:
            return None
        try:
            reads = self._reads(model)
        except Exception:  # the capture runs the user's code, which may raise any error
            return None
        return reads if reads is None else replace(captured, reads=reads, again=replace(self, left=self.left - 1))

    def _reads(self, model: nn.Module) -> Reads | None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        inputs = self.inputs.map(lambda tensor: tensor.to(device))
        devices = [device] if device.type == "cuda" else []
        with without_autocast(device.type), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = capture(model, inputs, self.frontend, compare=False).module
        if found.dni_runs_graph:
            ReorderNodes(self.order)(found)
        constants = _constants(found)
        same = constants.keys() == self.constants.keys() and all(
            torch.equal(value, self.constants[name]) for name, value in constants.items()
        )
        return found.dni_captured.reads if same and str(found.graph) == self.text else None


def _constants(module: DecoupledModule) -> dict[str, Tensor]:
    """Copies of the tensors in the graph of a captured module that the model does not have."""
    original = module.dni_original
    paths = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    values = {path: at_path(module, path) for path in paths if not has_path(original, path)}
    return {path: value.detach().clone() for path, value in values.items() if isinstance(value, Tensor)}
