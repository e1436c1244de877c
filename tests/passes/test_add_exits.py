"""The call of an exit: what it takes, where it stands, and how it is removed."""

from typing import Any

import pytest
import torch
from exit_nets import NETS, error
from small_graphs import SmallGraph, lines, records
from torch import Tensor, nn

from dni_fx.passes.add_context import AddContext
from dni_fx.passes.add_exits import AddExits
from dni_fx.passes.add_synthesizers import AddSynthesizers
from dni_fx.passes.mark_segments import MarkSegments
from dni_fx.passes.remove_dni import RemoveDni
from dni_fx.plans import CrossingTensor, Cut, ExitPlan
from dni_fx.runtime import plain


class Zero(nn.Module):
    _is_impure = True

    def forward(self, tensors: Any, *_: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)


def two_crossing(weights: str, target: str = "") -> tuple[Any, list[Cut]]:
    """x -> h -> r -> y, where y also takes h, with a cut after r."""
    small = SmallGraph(first=nn.Linear(3, 4), second=nn.Linear(4, 4))
    x, mask = small.input("x"), small.input("mask")
    h = small.module("first", x, name="h")
    r = small.call(torch.relu, h, name="r")
    y = small.call(torch.mul, small.module("second", r, name="s"), mask, name="m")
    small.dni.add_module("exit0", Zero())
    module = small.give(small.call(torch.add, y, h, name="y"))
    tensors = tuple(CrossingTensor(name, (5, 4), "float32", 80, -1) for name in "hr")
    return module, [Cut("r", tensors, ExitPlan(1, weights, ("s", "m", "y"), {}, ("mask",), ("second",), target=target))]


def rewritten(module: Any, cuts: list[Cut], context: bool) -> None:
    MarkSegments(["r"])(module)
    if context:
        AddContext()(module)
    AddExits(cuts)(module)
    AddSynthesizers([["h", "r"]])(module)
    module.graph.lint()
    module.recompile()


def test_a_call_with_all_that_the_exit_takes() -> None:
    module, cuts = two_crossing("shared", target="x")
    x, mask = torch.rand(5, 3), torch.rand(5, 4)
    before, result = lines(module), module(x, mask)
    rewritten(module, cuts, context=True)
    added = [line for line in lines(module) if line not in before]
    assert added == [
        "dni_context",
        "h_detached = .detach(h)",
        "r_detached = .detach(r)",
        "borrowed_second = second",
        "exit0 = dni.exit0((h_detached, r_detached), (mask,), (borrowed_second,), dni_context, x)",
        "h_gradient = getitem(exit0, 0)",
        "r_gradient = getitem(exit0, 1)",
        "h_synthetic = dni.cut0_h(h_detached, h_gradient)",
        "r_synthetic = dni.cut0_r(r_detached, r_gradient)",
    ]
    names = [line.split(" = ")[0] for line in lines(module)]
    assert names.index("r") < names.index("h_detached") and names.index("r_synthetic") < names.index("s")
    assert {records(module, "segment")[line.split(" = ")[0]] for line in added[1:]} == {0}
    assert records(module, "role")["exit0"] == "exit" and records(module, "role")["h_detached"] == "detach"
    assert torch.equal(module(x, mask), result)
    RemoveDni()(module)
    assert lines(module) == before


@pytest.mark.parametrize(("weights", "borrows"), [("readonly", True), ("ema", True), ("copy", False), ("fresh", False)])
def test_copies_borrow_nothing(weights: str, borrows: bool) -> None:
    module, cuts = two_crossing(weights)
    rewritten(module, cuts, context=False)
    call = next(line for line in lines(module) if line.startswith("exit0"))
    borrowed = "(borrowed_second,)" if borrows else "()"
    assert call == f"exit0 = dni.exit0((h_detached, r_detached), (mask,), {borrowed})"


def test_a_cut_without_exit_stays_as_it_is() -> None:
    module, cuts = two_crossing("shared")
    before = lines(module)
    MarkSegments(["r"])(module)
    AddExits([Cut("r", cuts[0].tensors)])(module)
    assert lines(module) == before


@pytest.mark.parametrize("name", ["mlp", "transformer", "own loss", "autoencoder", "unet", "writes"])
@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_the_captured_graph_is_left_after_removal(name: str, unlock: str) -> None:
    case = NETS[name]
    net = case.net("exit", unlock=unlock)
    graph = plain(net)
    names = [node.name for node in graph.graph.nodes if node.op != "output"]
    assert "dni" not in graph.code and not [n for n in names if "borrowed" in n or "detached" in n or "exit" in n]
    found = case.model()
    graph.load_state_dict(found.state_dict())
    graph.zero_grad()
    case.value(graph(*case.inputs)).backward()
    gradients = {n: p.grad for n, p in graph.named_parameters() if p.grad is not None}
    assert error(gradients, case.backprop()) < 1e-12
