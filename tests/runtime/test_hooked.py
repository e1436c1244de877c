"""Nets that cut by forward hooks: the hooks are there during a training step alone."""

import pytest
import torch
from nets import Nested, Stack, Twice

import dni_fx
from dni_fx.runtime.hooked import HookedModule, Output

X = torch.rand(4, 6)


def hooks(net: HookedModule) -> int:
    return sum(len(module._forward_hooks) for module in net.dni_original.modules())


def test_hooks_are_removed_after_the_step_and_after_an_error() -> None:
    net = dni_fx.transform(Stack(), X, frontend="modules", cuts=["b"]).train()
    assert isinstance(net, HookedModule)
    net(X).sum().backward()
    assert hooks(net) == 0 and [c.steps for c in net.dni.crossings.values()] == [1]
    with pytest.raises(RuntimeError):
        net(torch.rand(4, 5))
    assert hooks(net) == 0


def test_without_gradients_the_model_runs_alone() -> None:
    model = Stack()
    net = dni_fx.transform(model, X, frontend="modules", cuts=["b"]).train()
    with torch.no_grad():
        assert torch.equal(net(X), model(X))
    assert torch.equal(net.eval()(X), model(X))
    assert [c.steps for c in net.dni.crossings.values()] == [0]


def test_each_call_is_a_node_of_the_record() -> None:
    net = dni_fx.transform(Twice(), X, cuts=2, frontend="modules")
    outputs = net.dni_captured.outputs
    assert {output.call for output in outputs.values() if output.module == "b"} == {0, 1, 2}
    assert Output("b", 2, 0) in outputs.values()


def test_preferred_ends_are_calls_of_one_container() -> None:
    net = dni_fx.transform(Nested(), X, cuts=2, frontend="modules")
    ends = net.dni_preferred_ends()
    assert ends and {net.dni_captured.outputs[name].module.rpartition(".")[0] for name in ends} == {"stages"}
