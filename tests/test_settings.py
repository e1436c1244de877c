"""Settings: what they keep, and what they refuse."""

from typing import Any

import pytest
import torch
from nets import two_layers
from one_cut import transformed

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.settings import Settings, Training, check_loss


def test_a_plan_keeps_the_settings() -> None:
    net = transformed("none", mix=(1.0, 0.5, 7), training=Training(scale="rms", clip=2.0, warmup=3, every=2))
    plan = dni_fx.Plan.from_json(net.dni.plan.to_json())
    assert plan.rewrite == net.dni.plan.rewrite
    assert plan.rewrite is not None and plan.rewrite.settings.training.scale == "rms"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0.0}, "scale=0.0"),
    ({"scale": "max"}, "scale='max'"),
    ({"clip": -1.0}, "clip=-1.0"),
    ({"warmup": -1}, "warmup=-1"),
    ({"warmup": 1.5}, "warmup=1.5"),
    ({"every": 0}, "every=0"),
    ({"lr": 0.0}, "lr=0.0"),
    ({"optimizer": "adam"}, "a function from parameters"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DniFxError) as caught:
        Training(**options)
    assert text in str(caught.value)


def test_what_needs_an_optimizer_says_so() -> None:
    for training in (Training(lr=2.0), Training(optimizer=torch.optim.Adam)):
        with pytest.raises(DniFxError, match="needs optimizer="):
            transformed(training=training)
    for mix in ((1.0, 0.0), (1.0, 0.0, 0), (2.0, 0.0, 3)):
        with pytest.raises(DniFxError, match="mix="):
            transformed("none", mix=mix)
    with pytest.raises(DniFxError, match="Training"):
        transformed(training="fast")


def other_than_a_loss(outputs: torch.Tensor, labels: torch.Tensor) -> Any:
    return outputs


LOSSES: list[tuple[Any, dict[str, Any], str]] = [
    ("relu", {"classes": 3}, "loss='relu': torch.nn.functional has no such function that is a loss"),
    ("__class__", {"classes": 3}, "loss='__class__': torch.nn.functional has no such function that is a loss"),
    ("softmax", {"classes": 3}, "there are binary_cross_entropy, "),
    ("triplet_margin_loss", {"classes": 3}, "no such function"),
    ("cross_entropi", {"classes": 3}, "did you mean 'cross_entropy'?"),
    (torch.nn.functional.relu, {"classes": 3}, "loss=<function relu> raises"),
    (torch.nn.CrossEntropyLoss, {"classes": 3}, "loss=<type CrossEntropyLoss> raises"),
    (torch.nn.CrossEntropyLoss(reduction="none"), {"classes": 3}, "returns <torch.Tensor of shape [5]>"),
    (other_than_a_loss, {"classes": 3}, "returns <torch.Tensor of shape [5, 3]>"),
    (lambda outputs, labels: 1.0, {"classes": 3}, "returns 1.0"),
    (lambda outputs, labels: outputs.detach().sum(), {"classes": 3}, "returns a scalar without gradient"),
    ("mse_loss", {"classes": 3}, "give context_size= in place of classes="),
]


@pytest.mark.parametrize("number", range(len(LOSSES)))
def test_what_is_no_loss(number: int) -> None:
    loss, context, text = LOSSES[number]
    for make in (dni_fx.transform, dni_fx.plan):
        with pytest.raises(DniFxError) as caught:
            make(two_layers(), torch.rand(4, 6), loss=loss, **context)
        message = str(caught.value)
        assert message.startswith("loss=") and text in message and "synthesizer" not in message


def test_losses_are_accepted() -> None:
    right: list[tuple[Any, dict[str, Any]]] = [
        ("cross_entropy", {"classes": 5}),
        ("nll_loss", {"classes": 2}),
        ("mse_loss", {"context_size": 1}),
        ("binary_cross_entropy_with_logits", {"context_size": 5}),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), {"classes": 3}),
        (lambda outputs, labels: (outputs - labels).abs().mean(), {"context_size": 2}),
    ]
    for loss, context in right:
        check_loss(Settings(loss=loss, **context))
