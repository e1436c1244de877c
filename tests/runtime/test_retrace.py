"""A rewritten graph that is traced again, exported or compiled is the same."""

from typing import Any

import pytest
import torch
from nets import LongSkip
from oracle import loss_of
from torch import fx, nn

import dni_fx
import dni_fx.ops

torch.manual_seed(0)
X = torch.rand(5, 6)


def test_one_graph_compiles() -> None:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh"], unlock="none", synthesizer="mlp")
    nn.init.normal_(net.dni.get_parameter("cut0_tanh.synthesizer.net.2.weight"))
    found = []
    for run in (net, torch.compile(net, backend="eager", fullgraph=True)):
        net.zero_grad()
        loss_of(run(X)).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient)


class _KeepsCrossings(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name.startswith("dni.") or super().is_leaf_module(m, module_qualified_name)


def _same_gradients(net: nn.Module, others: list[nn.Module]) -> None:
    found = []
    for run in (net, *others):
        run.zero_grad()
        loss_of(run(X)).backward()
        found.append({n: p.grad.clone() for n, p in run.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert any(name.startswith("dni.") for name in other)
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient)


def _random(unlock: str) -> Any:
    net = dni_fx.transform(LongSkip(), X, cuts=["tanh", "tanh_1"], unlock=unlock)
    for parameter in net.dni.parameters():
        nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_the_boundaries_survive_another_trace(unlock: str) -> None:
    net = _random(unlock)
    again = fx.GraphModule(net, _KeepsCrossings().trace(net))
    _same_gradients(net, [again])
    own = [n.target for n in again.graph.nodes if n.target in (dni_fx.ops.decouple, dni_fx.ops.inject)]
    assert own == [n.target for n in net.graph.nodes if n.target in (dni_fx.ops.decouple, dni_fx.ops.inject)]
    assert own


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch.export's own
def test_one_graph_exports() -> None:
    net = _random("none")
    _same_gradients(net, [torch.export.export(net, (X,), strict=False).module()])
