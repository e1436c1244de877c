"""The interface between a cut and a synthesizer, of which a plain module has the defaults."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError, Synthesizer, Training
from dni_fx.synthesizers import Activation, Carried, LossScale

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
STATE = torch.zeros(12, 4)


class Plain(nn.Module):
    """A user's synthesizer that is no subclass of `Synthesizer`."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(activation.features, activation.features)
        self.resets = 0

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.layer(activation)
        return predicted

    def reset(self) -> None:
        self.resets += 1


class Configured(Synthesizer):
    """Keeps the settings that it was given."""

    own_unit = True

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.layer = nn.Linear(activation.features, activation.features)
        self.settings: list[tuple[LossScale | None, bool]] = []

    def configure(self, *, loss_scale: LossScale | None, centered: bool) -> None:
        self.settings.append((loss_scale, centered))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.layer(activation) + 1.0
        return predicted


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8 + 4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.inner(torch.cat([x, state], 1)))
        return self.head(state), state


def in_depth(synthesizer: Any, **options: Any) -> Any:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    return dni_fx.transform(model, X, cuts=["1"], synthesizer=synthesizer, verify=False, **options).train()


def in_time(synthesizer: Any, **options: Any) -> Any:
    return dni_fx.transform(Cell(), (X, STATE), state=True, synthesizer=synthesizer, verify=False, **options).train()


# ------------------------------------------------------------------------------------------------ plain modules
def test_a_plain_module_stands_in_the_net_as_it_is() -> None:
    net = in_depth(Plain)
    (synthesizer,) = net.dni.synthesizers.values()
    assert type(synthesizer) is Plain
    assert "dni.cut0__1.synthesizer.layer.weight" in net.state_dict()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_plain_module_is_trained_in_depth(scaled: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    net = in_depth(Plain, scaler=scaler)
    loss = net(X).square().mean()
    (scaler.scale(loss) if scaler is not None else loss).backward()
    (synthesizer,) = net.dni.synthesizers.values()
    assert synthesizer.layer.weight.grad.any()
    assert net.dni.metrics()["cut0__1"]["target_norm"] > 0


@pytest.mark.parametrize("centered", [False, True])
def test_a_plain_module_is_trained_in_time_and_the_cut_centers_for_it(centered: bool) -> None:
    net, state = in_time(Plain, training=Training(centered=centered)), STATE
    for _ in range(3):
        y, state = net(X, state)
        y.square().mean().backward()
    assert net.dni.time0.synthesizer.layer.weight.grad.any()
    predicted = net.dni.time0.predicted(torch.rand(12, 4))
    assert torch.allclose(predicted.mean(0), torch.zeros(4), atol=1e-6) is centered


def test_a_plain_module_goes_through_checkpoints_and_resets() -> None:
    net = in_depth(Plain)
    net(X).square().mean().backward()
    progress = net.dni.progress()
    assert progress["cut0__1"] == {"steps": 1, "carried": None}
    again = in_depth(Plain)
    again.dni.resume(progress)
    assert again.dni.cut0__1.steps == 1
    net.dni.reset()
    net.dni.reset(torch.ones(12, dtype=torch.bool))  # rows are for cuts in time
    assert net.dni.cut0__1.synthesizer.resets == 1


# ------------------------------------------------------------------------------------------------ configure
def test_by_default_there_is_nothing_to_configure() -> None:
    made = Synthesizer(Activation((2, 3), torch.float32, torch.device("cpu"), 1))
    before = dict(made.__dict__)
    made.configure(loss_scale=None, centered=True)
    assert made.__dict__ == before


def test_a_scaler_configures_the_synthesizer() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    net = in_depth(Configured, scaler=scaler)
    (synthesizer,) = net.dni.synthesizers.values()
    ((loss_scale, centered),) = synthesizer.settings
    assert loss_scale.factor() == 8.0 and centered is False
    net.dni.scale_with(torch.amp.GradScaler("cpu", enabled=False))
    assert synthesizer.settings[-1] == (None, False)


@pytest.mark.parametrize("centered", [False, True])
def test_a_cut_in_time_configures_the_synthesizer_and_a_scaler_keeps_that(centered: bool) -> None:
    net = in_time(Configured, training=Training(centered=centered))
    assert net.dni.time0.synthesizer.settings == [(None, centered)]
    net.dni.scale_with(torch.amp.GradScaler("cpu", init_scale=4.0))
    loss_scale, still = net.dni.time0.synthesizer.settings[-1]
    assert loss_scale.factor() == 4.0 and still is centered


@pytest.mark.parametrize("own_unit", [False, True])
def test_a_synthesizer_with_its_own_unit_gets_unscaled_targets_and_centers_itself(own_unit: bool) -> None:
    made = type("Made", (Configured,), {"own_unit": own_unit})
    net = in_time(made, training=Training(centered=True, scale=0.5))
    rows = torch.rand(12, 4)
    raw = net.dni.time0.synthesizer(rows)
    expected = raw if own_unit else 2.0 * (raw - raw.mean(0))
    torch.testing.assert_close(net.dni.time0.predicted(rows), expected / 12)


@pytest.mark.parametrize(
    ("name", "options"), [("least_squares", {}), ("guided_head", {"classes": 3, "loss": "cross_entropy"})]
)
def test_copies_are_not_scaled(name: str, options: dict[str, Any]) -> None:
    net = in_depth(name, scaler=torch.amp.GradScaler("cpu"), **options)
    (synthesizer,) = net.dni.synthesizers.values()
    (copied,) = copy.deepcopy(net).dni.synthesizers.values()
    assert synthesizer.loss_scale is not None and copied.loss_scale is None


# ------------------------------------------------------------------------------------------------ carried states
class Counting(Synthesizer):
    """A user's own synthesizer with a state."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.carried: Carried = Carried()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        before = self.carried.state_for(activation)
        state = self.slope * (torch.ones_like(activation) if before is None else before + 1)
        self.carried.remember(state)
        return state

    def reset(self) -> None:
        self.carried.forget()


def test_a_carried_state_is_part_of_progress_and_of_copies() -> None:
    net = in_depth(Counting)
    for _ in range(2):
        net(X)
    again = in_depth(Counting)
    again.dni.resume(net.dni.progress())
    for one in (again, copy.deepcopy(net)):
        assert one.dni.cut0__1.synthesizer.carried.state.unique().tolist() == [2.0]
        one.dni.reset()
        assert one.dni.cut0__1.synthesizer.carried == Carried()
    assert net.dni.cut0__1.synthesizer.carried.state is not None


def test_a_carried_state_is_for_the_same_batch() -> None:
    carried = Carried()
    assert carried.state_for(X) is None
    carried.remember(X.clone().requires_grad_())
    assert not carried.state_for(X).requires_grad
    assert carried.state_for(X[:3]) is None
    assert carried.state_for(X) is None


def test_a_synthesizer_with_a_state_is_not_for_a_cut_in_time() -> None:
    with pytest.raises(DniFxError, match="carries a state of its own"):
        in_time(Counting)
