"""The front door of pytorch-dni: its README's loops, its arguments, its lambda."""

import copy
from typing import Any

import pytest
import torch
from nets import three_layers
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Synthesizer

X, Y = torch.randn(16, 8), torch.randint(3, (16,))


def loss_of(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(X), Y)


@pytest.mark.parametrize("steps_too", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_loop_of_its_readme(given: bool, steps_too: bool) -> None:
    """With a step in the loop, or without; with `optim`, or with an optimizer that is not given."""
    network = three_layers()
    before = copy.deepcopy(network.state_dict())
    opt = torch.optim.Adam(network.parameters(), lr=0.01)
    net = dni_fx.DNI(network, optim=opt if given else None, grad_optim="adam", grad_lr=0.01)
    first = None
    for _ in range(100):
        opt.zero_grad()
        loss = loss_of(net)
        first = float(loss.detach()) if first is None else first
        loss.backward()
        if steps_too:
            opt.step()
    assert float(loss.detach()) < 0.6 * first
    assert all(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for synthesizer in net.dni.synthesizers.values():
        assert all(p.any() for p in synthesizer.parameters())


class TwoOutputs(nn.Module):
    """The first of them carries no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.below(x)
        return h.detach(), self.above(h)


def test_whichever_output_the_loss_is_of() -> None:
    network = TwoOutputs()
    before = copy.deepcopy(network.state_dict())
    net = dni_fx.DNI(network, grad_lr=0.01)
    nn.functional.cross_entropy(net(X)[1], Y).backward()
    assert all(not torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_step_of_its_own_is_one_step() -> None:
    """The gradients are used up: a step in the loop after it does nothing."""
    results = []
    for steps_too in (False, True):
        network = three_layers()
        opt = torch.optim.SGD(network.parameters(), lr=0.1)
        torch.manual_seed(1)
        net = dni_fx.DNI(network, optim=opt)
        loss_of(net).backward()
        if steps_too:
            opt.step()
        results.append(network.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_lambda_is_the_share_of_the_true_gradient(share: float) -> None:
    """An untrained synthesizer predicts zero: each cut passes this share of the true gradient."""
    network, model = three_layers(), three_layers()
    moved = {}
    for net in (dni_fx.DNI(network, optim=torch.optim.SGD(network.parameters(), 1.0), λ=share), model):
        before = {name: p.detach().clone() for name, p in (network if net is not model else model).named_parameters()}
        loss_of(net).backward()
        if net is model:
            moved[net] = {name: p.grad for name, p in model.named_parameters()}
        else:
            moved[net] = {name: before[name] - p.detach() for name, p in network.named_parameters()}
    for name, power in (("0.weight", 2), ("2.weight", 1), ("4.weight", 0)):
        ours, true = (grads[name] for grads in moved.values())
        assert true is not None
        torch.testing.assert_close(ours, share**power * true)
    assert dni_fx.DNI(three_layers(), lam=0.25).settings.mix == 0.25


def test_where_it_cuts() -> None:
    def cuts(**options: Any) -> tuple[int, bool]:
        net = dni_fx.DNI(three_layers(), **options)
        loss_of(net).backward()
        return len(net.dni.plan.cuts) if hasattr(net, "dni") else 0, net.last is not None

    assert cuts() == (2, False)
    assert cuts(skip_last_layer=False) == (2, True)
    assert cuts(recursive=False) == (0, True)


class HeadFirst(nn.Module):
    """Defines its last layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


def test_the_last_layer_is_the_one_called_last() -> None:
    net = dni_fx.DNI(HeadFirst())
    loss_of(net).backward()
    assert [cut.after for cut in net.dni.plan.cuts] == ["body"]


def test_layers_that_are_wrapped_one_by_one() -> None:
    """Its README's second example: each layer steps by itself, the rest by the optimizer of the loop."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = dni_fx.DNI(nn.Linear(8, 8), hidden_size=16, grad_lr=0.01, recursive=False)
            self.final = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.final(torch.relu(self.first(x)))

    net = Net()
    before = copy.deepcopy(net.first.network.state_dict())
    opt = torch.optim.Adam(net.final.parameters(), 0.01)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = loss_of(net)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(before["weight"], net.first.network.state_dict()["weight"])


class Mine(nn.Module):
    """Of the older interface."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra
        self.net = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size))

    def forward(self, input: Tensor, hidden: Any) -> Any:
        return self.net(input), hidden


class New(Synthesizer):
    def __init__(self, activation: Activation, context_size: int = 0, *, slope: float = 1.0) -> None:
        super().__init__(activation, context_size)
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return activation * self.slope


NETWORKS = [
    (None, {}, "MLP"),
    ("lstm", {"layers": 2}, "LSTM"),
    ("mlp", {"hidden_layers": 3, "batch_norm": True}, "MLP"),
    (New, {"slope": 2.0}, "New"),
]


@pytest.mark.parametrize(("network", "params", "name"), NETWORKS)
def test_kinds_of_synthesizers(network: Any, params: dict[str, Any], name: str) -> None:
    net = dni_fx.DNI(three_layers(), dni_network=network, dni_params=params)
    loss_of(net).backward()
    assert {type(s).__name__ for s in net.dni.synthesizers.values()} == {name}


def test_a_synthesizer_of_the_older_interface() -> None:
    net = dni_fx.DNI(three_layers(), dni_network=Mine, dni_params={"extra": 3}, hidden_size=7)
    loss_of(net).backward()
    found = [m for m in net.dni.modules() if isinstance(m, Mine)]
    assert [(m.extra, m.net[0].out_features) for m in found] == [(3, 7), (3, 7)]


def test_in_eval_mode_it_is_the_network() -> None:
    network = three_layers()
    net = dni_fx.DNI(network)
    loss_of(net).backward()
    assert torch.equal(net.eval()(X), network.eval()(X))
    again = dni_fx.DNI(three_layers())
    again.build(X)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(X), net(X))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"grad_optim": "adamw"}, "grad_optim='adamw'"),
    ({"λ": -1}, "between 0 and 1"),
    ({"dni_network": 3}, "dni_network=3"),
    ({"network": 3}, "an nn.Module"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_arguments(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DniFxError) as caught:
        dni_fx.DNI(**({"network": three_layers()} | options))
    assert text in str(caught.value)


def test_a_format_function_is_not_needed() -> None:
    with pytest.warns(UserWarning, match="format_fn"):
        dni_fx.DNI(three_layers(), format_fn=lambda o: o)
