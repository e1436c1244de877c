"""The loss that an exit ends in: any function, any target, the model's own, or the input; and clear errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from exit_nets import NETS, Case, Transformer, TwoOutputs, error, gradients
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.errors import ContextError, DniFxError

MLP = NETS["mlp"]
EXIT = "exit(units='all', weights='readonly')"


def test_a_function_with_options() -> None:
    """Rows with the label -100 do not count, neither in the mean."""
    loss = nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1)
    made = replace(MLP, loss=loss, target=torch.tensor([0, 1, 1, 2]))
    assert error(made.step(made.net(EXIT)), made.backprop()) < 1e-12


class Variational(nn.Module):
    """A reconstruction, and a term of the loss that does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.c(h), h.square().mean()


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_a_term_of_the_loss_is_no_loss(frontend: str) -> None:
    """Below a cut such an exit would train on this term alone."""
    with pytest.raises(DniFxError, match="an exit ends in the loss: give loss="):
        dni_fx.transform(Variational(), torch.rand(4, 6), cuts=["a"], synthesizer="exit", frontend=frontend)
    plan = dni_fx.plan(Variational(), torch.rand(4, 6), cuts=["a"], frontend=frontend)
    assert plan.cuts[0].exit is None


def test_a_nested_target_reaches_the_loss() -> None:
    made, seen = NETS["two outputs"], []

    def loss(outputs: dict[str, Tensor], target: dict[str, Any]) -> Tensor:
        seen.append((set(outputs), target))
        return F.mse_loss(outputs["u"], target["u"]) + F.mse_loss(outputs["v"], target["more"][0])

    net = made.net("exit", loss=loss)
    made.step(net)
    assert len(seen) == 2 and all(outputs == {"u", "v"} and target is made.target for outputs, target in seen)


def test_an_exported_graph_has_the_outputs_of_the_model() -> None:
    made, seen = NETS["two outputs"], []

    def loss(outputs: dict[str, Tensor], target: dict[str, Any]) -> Tensor:
        seen.append({name: tuple(value.shape) for name, value in outputs.items()})
        return F.mse_loss(outputs["u"], target["u"])

    made.step(made.net("exit", ("tanh", "tanh_1"), frontend="export", loss=loss))
    assert seen == [{"u": (4, 3), "v": (4, 1)}] * 2


def test_an_autoencoder_takes_its_input_as_target() -> None:
    made = NETS["autoencoder"]
    net = made.net(EXIT)
    assert net.dni.plan.cuts[0].exit.target == "input_1"
    x = made.inputs[0]
    F.mse_loss(net(x, dni_context=2 * x), 2 * x).backward()  # a given target takes its place
    model = made.model()
    F.mse_loss(model(x), 2 * x).backward()
    assert error(gradients(net), gradients(model)) < 1e-12


def test_a_model_that_returns_its_loss_takes_no_target() -> None:
    net = NETS["own loss"].net("exit")
    assert [cut.exit.loss for cut in net.dni.plan.cuts] == ["cross_entropy"] * 2
    assert not net.dni.plan.takes_context
    with pytest.raises(TypeError, match="the net takes no labels"):
        net(*NETS["own loss"].inputs, dni_context=torch.zeros(4))
    net(*NETS["own loss"].inputs, dni_context=None)  # as code for nets of both kinds gives it


def test_a_loss_by_name_takes_labels_at_positions() -> None:
    """Of outputs (N, T, K) and labels (N, T), as language models have them."""
    made = replace(NETS["transformer"], loss="cross_entropy")
    net, model = made.net(EXIT), made.model()
    logits = net(*made.inputs, **made.context)
    F.cross_entropy(logits.flatten(0, 1), made.target.flatten()).backward()
    F.cross_entropy(model(*made.inputs).flatten(0, 1), made.target.flatten()).backward()
    assert error(gradients(net), gradients(model)) < 1e-12


def test_a_loss_by_name_takes_maps_as_they_are() -> None:
    """Outputs (N, K, H, W) and labels (N, H, W), also where K, H and W are equal."""
    made = NETS["unet"]
    assert error(made.step(made.net(EXIT)), made.backprop()) < 1e-12
    square = replace(made, make=lambda: nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(3)]).double(), cuts=["0"])
    square = replace(square, inputs=(torch.rand(3, 2, 2, 2).double(),), target=torch.randint(2, (3, 2, 2)))
    assert error(square.step(square.net(EXIT)), square.backprop()) < 1e-12


def test_a_loss_by_name_does_not_broadcast() -> None:
    """Of outputs (N, 1) and numbers (N,), `mse_loss` would compare each row with each number."""
    made = replace(
        MLP, make=lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double(), loss="mse_loss"
    )
    made = replace(made, cuts=["1"], target=torch.rand(4).double())
    net, model = made.net(EXIT), made.model()
    for module, context in ((net, made.context), (model, {})):
        F.mse_loss(module(*made.inputs, **context)[:, 0], made.target).backward()
    assert error(gradients(net), gradients(model)) < 1e-12


def test_no_target() -> None:
    net = MLP.net("exit")
    with pytest.raises(ContextError, match=r"target of the loss.*dni_context=target"):
        net(*MLP.inputs)
    assert net.eval()(*MLP.inputs).shape == (4, 3)
    with torch.no_grad():
        assert net.train()(*MLP.inputs).shape == (4, 3)


def test_no_loss() -> None:
    with pytest.raises(DniFxError, match=r"an exit ends in the loss: give loss="):
        MLP.transform(loss=None)


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        ("cross_entropy", torch.tensor([0, 1]), r"raises ValueError \(Expected input batch_size \(4\) to match"),
        ("cross_entropy", torch.tensor([0, 1, 2, 7]), r"raises IndexError \(Target 7 is out of bounds"),
        ("cross_entropy", {"labels": MLP.target}, r"raises TypeError \(.*must be Tensor, not dict"),
        ("mse_loss", torch.rand(3, 4).double(), r"raises \w+ \(.*size"),
        (lambda o, y: F.cross_entropy(o["logits"], y), MLP.target, r"raises IndexError .*dni_context of a call"),
        (lambda o, y: F.cross_entropy(o, y["labels"]), {"label": MLP.target}, r"raises KeyError \('labels'\)"),
        (lambda o, y: F.cross_entropy(o, y.labels), MLP.target, r"raises AttributeError \(.*'labels'\)"),
        (lambda o, y: F.cross_entropy(o, y, reduction="none"), MLP.target, "not a scalar with gradient"),
        (lambda o, y: F.cross_entropy(o.detach(), y), MLP.target, "not a scalar with gradient"),
        (lambda o, y: 3.0, MLP.target, "not a scalar with gradient"),
    ],
)
def test_a_wrong_loss(loss: Any, target: Any, message: str) -> None:
    net = MLP.net("exit", loss=loss)
    with pytest.raises(DniFxError, match=message) as caught:
        net(*MLP.inputs, dni_context=target)
    assert len(str(caught.value).splitlines()) == 1


def test_a_loss_without_labels() -> None:
    """A `loss` alone no longer needs `classes`: exits take any target."""
    made = Case("vectors", TwoOutputs, MLP.inputs, None, ["a"], lambda outputs, _: outputs["u"].square().mean())
    made = replace(made, make=lambda: TwoOutputs().double(), target=torch.zeros(()))
    net = made.net(EXIT)
    assert net.dni.rewrite.classes is None
    assert error(made.step(net), made.backprop()) < 1e-12


def test_auto_takes_exits_where_there_is_a_loss() -> None:
    wide = replace(NETS["transformer"], make=lambda: Transformer(32))
    auto: dict[str, Any] = {"cuts": 2, "loss": wide.loss, "verify": False}
    net = dni_fx.transform(wide.make(), wide.inputs, **auto)
    assert set(net.dni.exits) == {0}
    assert not dni_fx.transform(wide.make(), wide.inputs, cuts=2, verify=False).dni.exits
