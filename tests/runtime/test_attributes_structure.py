"""Calls after the structure or the code of a model has changed for which its graph was made."""

import collections
import copy
import functools
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Value:
    def __init__(self, value: float) -> None:
        self.value = value


class InClass:
    tau = 1.0


FACTORS = Value(1.0)


def scaled(x: Tensor, by: float = 1.0) -> Tensor:
    return x * by


def patched(_self: Any, x: Tensor) -> Tensor:
    return x * 3


def replaced(x: Tensor) -> Tensor:
    return x


def times(_module: Any, _arguments: Any, result: Tensor | None = None) -> None:
    return None


class Scale:
    """Makes a function with a value in its closure."""

    def __init__(self) -> None:
        factor = 1.0

        def scale(x: Tensor) -> Tensor:
            return x * factor

        def change(value: float) -> None:
            nonlocal factor
            factor = value

        self.scale, self.change = scale, change


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), nn.ReLU()

    def mixed(self, x: Tensor) -> Tensor:
        return x * 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.act(self.linear(x)))


class Net(nn.Module):
    of_class = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.block = nn.ModuleList([Block(), Block()]), Block()
        self.steps = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.lists = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8, 8)])})
        self.heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
        self.queue, self.user = collections.deque([1.0, 2.0]), collections.UserDict(tau=1.0)
        self.objects, self.nested = [Value(1.0), Value(2.0)], [[Value(1.0)]]
        scale = Scale()
        self.scale, self.change = scale.scale, scale.change
        self.partial = functools.partial(self.scale)

    def mixed(self, x: Tensor) -> Tensor:
        return x * 1.0

    def scaled(self, x: Tensor) -> Tensor:
        x = scaled(x) * type(self).of_class * InClass.tau * FACTORS.value * self.nested[0][0].value
        for value in (*self.queue, *(one.value for one in self.objects), len(self.user), *self.user.values()):
            x = x * value
        return self.partial(self.scale(x))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.steps(self.block(x))
        for layers in self.lists.values():
            x = layers[0](x)
        return self.heads[0](self.scaled(self.mixed(x)))


Change = Callable[[Any], object]

STRUCTURE: dict[str, tuple[str, Change]] = {
    "append": (r"children of blocks was \['0', '1'\] .* '2'\]", lambda m: m.blocks.append(nn.Linear(8, 8))),
    "append to a Sequential": ("children of steps was", lambda m: m.steps.append(nn.ReLU())),
    "delete": ("children of blocks was", lambda m: m.blocks.__delitem__(0)),
    "a new key": ("children of lists was", lambda m: m.lists.update({"b": nn.ModuleList([nn.Linear(8, 8)])})),
    "a child of another class": (
        "blocks.1.forward was .*Block.forward .*Linear.forward",
        lambda m: m.blocks.__setitem__(1, nn.Linear(8, 8)),
    ),
    "a leaf is deleted": ("block.act", lambda m: delattr(m.block, "act")),
    "a leaf is None": ("block.act", lambda m: setattr(m.block, "act", None)),
    "method": ("mixed was .*Net.mixed .*patched", lambda m: setattr(m, "mixed", MethodType(patched, m))),
    "method of a child": (
        "block.mixed was .*Block.mixed .*patched",
        lambda m: setattr(m.block, "mixed", MethodType(patched, m.block)),
    ),
    "forward of a child": ("block.forward was", lambda m: setattr(m.block, "forward", replaced)),
    "forward of a container": ("steps.forward was", lambda m: setattr(m.steps, "forward", replaced)),
    "hook": (r"list of hooks of block was \[\] .*times'\]", lambda m: m.block.register_forward_hook(times)),
    "hook of a container": ("list of hooks of steps was", lambda m: m.steps.register_forward_pre_hook(times)),
    "backward hook": ("list of hooks of block was", lambda m: m.block.register_full_backward_hook(times)),
}
VALUES: dict[str, tuple[str, Change]] = {
    "deque": (r"queue was \[1.0, 2.0\] .* \[1.0, 2.0, 3.0\]", lambda m: m.queue.append(3.0)),
    "UserDict": (r"user was \{'tau': 1.0\}", lambda m: m.user.update(lr=3.0)),
    "list of objects": (r"objects\[1\].value was 2.0", lambda m: setattr(m.objects[1], "value", 3.0)),
    "longer list of objects": ("length of objects was 2 .* is 3 now", lambda m: m.objects.append(Value(3.0))),
    "nested list": (r"nested\[0\]\[0\].value was 1.0", lambda m: setattr(m.nested[0][0], "value", 3.0)),
    "closure": ("factor in the closure of .* was 1.0", lambda m: m.change(3.0)),
}
ACT: dict[str, Change] = {
    "a leaf of a Sequential": lambda m: m.steps.__setitem__(0, nn.Linear(8, 8)),
    "a leaf": lambda m: setattr(m.block, "linear", nn.Linear(8, 8)),
    "a nested leaf": lambda m: m.lists["a"].__setitem__(0, nn.Linear(8, 8)),
    "an equal child": lambda m: m.blocks.__setitem__(1, Block()),
    "a head that is not used": lambda m: m.heads.append(nn.Linear(8, 4)),
    "a child that is not used": lambda m: m.block.add_module("unused", nn.Linear(8, 8)),
    "an equal queue": lambda m: setattr(m, "queue", collections.deque([1.0, 2.0])),
}
ACT_IN_FX: dict[str, Change] = {
    "an activation": lambda m: setattr(m.block, "act", nn.GELU()),
    "hook of a leaf": lambda m: m.block.linear.register_forward_hook(lambda _m, _a, result: result * 3),
    "forward of a leaf": lambda m: setattr(m.block.linear, "forward", replaced),
}

_NETS: dict[str, Any] = {}


def transformed(frontend: str) -> Any:
    """A copy of a net, which is made once for each front end, since torch.export takes a second."""
    if frontend not in _NETS:
        torch.manual_seed(0)
        _NETS[frontend] = dni_fx.transform(Net(), X, cuts=2, frontend=frontend).train()
    net = copy.deepcopy(_NETS[frontend])
    net(X)
    return net


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("case", [*STRUCTURE, *VALUES])
def test_a_change_for_which_the_graph_does_not_hold(frontend: str, case: str) -> None:
    message, change = (STRUCTURE | VALUES)[case]
    net = transformed(frontend)
    try:
        change(net.dni_original)
        with pytest.raises(DniFxError, match=message) as error:
            net(X)
        assert "transform the model again" in str(error.value)
    finally:
        net.dni_original.change(1.0)  # copies of a net share functions and their closures


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("of_net", [True, False])
def test_changes_that_act(frontend: str, of_net: bool) -> None:
    for change in [*ACT.values(), *(ACT_IN_FX.values() if frontend == "fx" else ())]:
        net = transformed(frontend)
        change(net if of_net else net.dni_original)
        for _ in range(2):
            torch.testing.assert_close(net(X), net.dni_original(X))
    if frontend == "export":
        for change in ACT_IN_FX.values():  # torch.export looks into layers
            net = transformed(frontend)
            change(net)
            with pytest.raises(DniFxError, match=r"block.(act|linear)"):
                net(X)


# An owner, a name and a new value outside the model.
OUTSIDE: dict[str, tuple[str, Any, str, Any]] = {
    "method of a class": ("mixed was .*Net.mixed .*patched", Net, "mixed", patched),
    "method of a child's class": ("blocks.0.mixed was", Block, "mixed", patched),
    "forward of a class": ("blocks.0.forward was", Block, "forward", patched),
    "attribute of the model's class": ("of_class was 1.0 .* is 3.0", Net, "of_class", 3.0),
    "attribute of a class": ("InClass.tau .* was 1.0 .* is 3.0", InClass, "tau", 3.0),
    "object": ("FACTORS.value .* was 1.0", FACTORS, "value", 3.0),
    "default": (r"scaled.__defaults__ .* was \(1.0,\)", scaled, "__defaults__", (3.0,)),
}


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_a_change_outside_the_model(frontend: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message, owner, name, value = OUTSIDE[case]
    net = transformed(frontend)
    with monkeypatch.context() as context:
        context.setattr(owner, name, value)
        with pytest.raises(DniFxError, match=message):
            net(X)
    net(X)


def test_a_helper_function_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    net = transformed("fx")
    other = functools.wraps(scaled)(lambda x: x)  # has the same name
    for function, message in ((replaced, "scaled .* was .*scaled .*replaced"), (other, "is another function")):
        monkeypatch.setitem(globals(), "scaled", function)
        with pytest.raises(DniFxError, match=message):
            net(X)


def test_a_hook_that_is_removed() -> None:
    net = transformed("fx")
    handle = net.block.register_forward_hook(times)
    with pytest.raises(DniFxError, match="hooks of block"):
        net(X)
    handle.remove()
    net(X)


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Block(), Block(), nn.Linear(8, 4))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy(copied: Callable[[Any], Any]) -> None:
    """A copy runs, and is compared with its own model."""
    net = copied(dni_fx.transform(Plain(), X, cuts=2, frontend="fx"))
    net(X)
    net.dni_original.append(nn.ReLU())
    with pytest.raises(DniFxError, match="list of children of the model"):
        net(X)


def test_a_model_that_is_a_graph() -> None:
    """A copy has generated code of its own, which is equal."""
    net = dni_fx.transform(torch.fx.symbolic_trace(Plain()), X, cuts=2, frontend="fx")
    copy.deepcopy(net)(X)
