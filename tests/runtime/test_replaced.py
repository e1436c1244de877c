"""Parameters that were replaced after an optimizer had taken them: an error, and none where all is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import dni_fx
from dni_fx import DniFxError

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def cut(**options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    if options.get("optimizer") == "given":
        options["optimizer"] = sgd(model.parameters())
    net: Any = dni_fx.transform(model, X, cuts=["1", "3"], **options).train()
    net.given = options.get("optimizer")
    step(net)
    return net


def step(net: Any) -> None:
    net.zero_grad()
    net(X).square().mean().backward()


class Adapter(nn.Module):
    """A low-rank adapter around a frozen layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer.requires_grad_(False), nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def assigned(net: Any) -> None:
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)


def set_by_hand(net: Any) -> None:
    net.get_submodule("0").weight = nn.Parameter(torch.rand(8, 8))


def another_layer(net: Any) -> None:
    net.set_submodule("0", nn.Linear(8, 8))


def old_weight_norm(net: Any) -> None:
    nn.utils.weight_norm(net.get_submodule("0"))


def weight_norm(net: Any) -> None:
    parametrizations.weight_norm(net.get_submodule("0"))


def adapted(net: Any) -> None:
    net.set_submodule("0", Adapter(net.get_submodule("0")))


def emptied(net: Any) -> None:
    net.to("meta").to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)


def converted(net: Any) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        net.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def added(net: Any) -> None:
    net.get_submodule("1").register_parameter("slope", nn.Parameter(torch.ones(1)))


def of_a_synthesizer(net: Any) -> None:
    layer = next(m for m in net.dni.modules() if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.detach().clone())


REPLACED = [
    assigned,
    set_by_hand,
    another_layer,
    old_weight_norm,
    weight_norm,
    emptied,
    converted,
    of_a_synthesizer,
]


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("replace", [*REPLACED, adapted, added])
def test_an_optimizer_for_each_segment(replace: Callable[[Any], None], unlock: str) -> None:
    net = cut(step="segment", optimizer=sgd, unlock=unlock)
    replace(net)
    for _ in range(2):  # until it is mended
        with pytest.raises(DniFxError, match=r'that step="segment" trains: .* dni_fx\.SegmentOptimizer\('):
            step(net)
    net.eval()(X)
    net.train()
    dni_fx.SegmentOptimizer(net, sgd)
    check_all_train(net)
    assert_held(net, unlock)


@pytest.mark.parametrize("replace", REPLACED)
def test_the_optimizer_given_to_transform(replace: Callable[[Any], None]) -> None:
    net = cut(optimizer="given")
    replace(net)
    with pytest.raises(DniFxError, match=r"no longer the one that the optimizer in optimizer= trains"):
        step(net)
    assert sgd(net.parameters()).param_groups  # deleted again
    with pytest.raises(DniFxError):
        step(net)
    anew = sgd(net.parameters())
    check_all_train(net, anew)
    assert_held(net)


@pytest.mark.parametrize("replace", [*REPLACED, adapted, added])
def test_a_loop_with_an_optimizer_of_its_own(replace: Callable[[Any], None]) -> None:
    """Then the segments see erased gradients of the new parameters, too."""
    net = cut()
    replace(net)
    check_all_train(net, sgd(net.parameters()))
    assert_held(net)
    loss = net(X).square().mean()
    net.zero_grad()
    with pytest.raises(dni_fx.errors.BackwardOrderError, match="zero_grad"):
        loss.backward()


@pytest.mark.parametrize("options", [{}, {"optimizer": "given"}, {"step": "segment", "optimizer": sgd}])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: prune.random_unstructured(net.get_submodule("0"), "weight", 0.5),
        lambda net: parametrize.register_parametrization(net.get_submodule("0"), "weight", Double()),
        lambda net: parametrizations.spectral_norm(net.get_submodule("0")),
        lambda net: net.set_submodule("1", nn.ReLU()),
        lambda net: net.get_submodule("0").requires_grad_(False),
        lambda net: net.double().float(),
    ],
)
def test_the_same_parameters_at_other_places(change: Callable[[Any], None], options: dict[str, Any]) -> None:
    net = cut(**options)
    change(net)
    step(net)
    assert_held(net)


def test_averaging_takes_the_new_parameters_and_names() -> None:
    net = cut()
    weight_norm(net)
    assert "0.parametrizations.weight.original0" in net._ddp_params_and_buffers_to_ignore
    assert "4.weight" not in net._ddp_params_and_buffers_to_ignore
    step(net)
    own = {id(p) for p in net.parameters()}
    assert {id(p) for group in net.dni.averaging.groups for p in group} <= own
    assert cut(unlock="none")._ddp_params_and_buffers_to_ignore == []


def check_all_train(net: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or net.dni.optimizer
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    for _ in range(3):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    unused = {"1.slope"}
    assert not {name for name, p in net.named_parameters() if name in before and torch.equal(p, before[name])} - unused


def assert_held(net: Any, unlock: str = "backward") -> None:
    held = {p for segment in net.dni.segments for p in segment.held}
    assert held <= {*net.parameters()} and {*net.get_submodule("0").parameters()} <= held
