"""One crossing: warm-up, mix, scale, clip, every, and values that are not finite."""

from typing import Any

import pytest
import torch
from nets import three_layers
from one_cut import WITH, Half, X, gradients, synthesizer_of, target_of, transformed

import dni_fx
from dni_fx.settings import Training


@pytest.mark.parametrize("unlock", WITH)
def test_a_warm_up_uses_the_true_gradients(unlock: str) -> None:
    net, model = transformed(unlock, training=Training(warmup=2)), three_layers()
    for step in range(4):
        expected, found = gradients(model), gradients(net)
        if step < 2:
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient)
        else:
            below = found.get("0.weight", torch.zeros(()))
            assert not below.any()  # an untrained synthesizer predicts zero
        assert any(g.any() for n, g in found.items() if n.startswith("dni."))  # it learns all along


@pytest.mark.parametrize("unlock", WITH)
def test_a_warm_up_goes_on_where_it_was_saved(unlock: str) -> None:
    net = transformed(unlock, training=Training(warmup=3))
    for _ in range(2):
        gradients(net)
    again = transformed(unlock, training=Training(warmup=3))
    again.load_state_dict(net.state_dict())
    assert gradients(again)["0.weight"].any()
    assert not gradients(again).get("0.weight", torch.zeros(())).any()


def test_a_schedule_of_mix() -> None:
    net = transformed("none", mix=(1.0, 0.0, 4))
    full = gradients(three_layers())["0.weight"]
    for share in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        torch.testing.assert_close(gradients(net)["0.weight"], share * full)
    segment: Any = net.dni.segment0
    assert int(segment.steps) == 6


def test_plain_settings_put_nothing_into_the_state_dict() -> None:
    names = [n for n in transformed().state_dict() if n.startswith("dni.")]
    assert all("synthesizer" in name for name in names)


@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_scale(unlock: str, scale: float) -> None:
    """The synthesizer regresses scale * target; its gradient is that of the batch mean of half the squared error."""
    net = transformed(unlock, synthesizer=Half, training=Training(scale=scale))
    found = gradients(net)["dni.cut0__1.synthesizer.value"]
    torch.testing.assert_close(found, (0.5 - scale * target_of(net)) / 16)
    model: Any = three_layers()
    h = model[:2](X)
    h.backward(torch.full_like(h, 0.5 / scale / 16))  # prediction / scale, for the mean over 16 rows
    torch.testing.assert_close(net.get_parameter("0.weight").grad, model[0].weight.grad)


def test_scale_by_the_running_root_mean_square() -> None:
    net = transformed(synthesizer=Half, training=Training(scale="rms"))
    gradients(net)
    square = target_of(net).square().mean()
    torch.testing.assert_close(net.dni.cut0__1.square, square)
    found = gradients(net)["dni.cut0__1.synthesizer.value"]
    torch.testing.assert_close(found, (0.5 - target_of(net) / square.sqrt()) / 16)


def test_without_labels_the_synthesizers_chosen_by_name_follow_faster() -> None:
    scales = [
        transformed(synthesizer=kind, **options).dni.cut0__1.scale
        for kind, options in [("linear", {}), ("linear", {"classes": 3}), ("linear", {"context_size": 2}), (Half, {})]
    ]
    assert scales == [1 / 16, 1.0, 1.0, 1.0]
    net = transformed(synthesizer="linear", training=Training(scale=0.5))
    assert net.dni.cut0__1.scale == net.dni.plan.rewrite.settings.training.scale == 0.5


@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize(
    "training", [Training(scale="rms"), Training(scale=0.1), Training(clip=0.1), Training(warmup=3), Training(every=2)]
)
def test_the_check_passes_with_every_option(unlock: str, training: Training) -> None:
    report = dni_fx.check(transformed(unlock, training=training), X)
    assert report, report


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_running_scale_goes_with_the_dtype(dtype: torch.dtype) -> None:
    net = transformed(training=Training(scale="rms"), accumulate=1).to(dtype)
    for _ in range(2):
        net(X.to(dtype)).square().mean().backward()
    assert net.dni.cut0__1.square > 0


@pytest.mark.parametrize("unlock", WITH)
def test_clip(unlock: str) -> None:
    net = transformed(unlock, synthesizer=Half, training=Training(clip=0.1))
    target = target_of(net)
    norms = target.norm(dim=1, keepdim=True)
    assert bool((norms > 0.1).any())
    held = target * (0.1 / norms).clamp(max=1)
    torch.testing.assert_close(gradients(net)["dni.cut0__1.synthesizer.value"], (0.5 - held) / 16)


@pytest.mark.parametrize("unlock", WITH)
def test_every(unlock: str) -> None:
    net = transformed(unlock, training=Training(every=3))
    trained = [any(n.startswith("dni.") and g.any() for n, g in gradients(net).items()) for _ in range(6)]
    assert trained == [True, False, False, True, False, False]


@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_goes_nowhere(unlock: str, bad: float) -> None:
    net = transformed(unlock, synthesizer=Half)
    with torch.no_grad():
        synthesizer_of(net).value[3, 2] = bad  # type: ignore[index]
    found = gradients(net)
    assert all(g.isfinite().all() for g in found.values())
    assert not any(g.any() for n, g in found.items() if n.startswith(("0.", "dni.")))
    assert net.dni.metrics()["cut0__1"]["skipped"] >= 1


@pytest.mark.parametrize("unlock", WITH)
def test_a_target_that_is_not_finite_trains_nobody(unlock: str) -> None:
    net = transformed(unlock, synthesizer=Half)
    output = net(X)
    (output.sum() * float("inf")).backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for n, g in grads.items() if n.startswith(("0.", "dni.")))
    gradient = grads.get("dni.cut0__1.synthesizer.value")
    assert gradient is None or not gradient.any()
    assert net.dni.metrics()["cut0__1"]["skipped"] == 1
    assert grads["0.weight"].any()  # its prediction was good


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_a_true_gradient_that_is_not_finite_is_not_mixed_in(mix: float) -> None:
    net = transformed("none", synthesizer=Half, mix=mix)
    (net(X).sum() * float("nan")).backward()
    assert net.get_parameter("0.weight").grad is None


@pytest.mark.parametrize("kind", ["mlp", "guided_head"])
@pytest.mark.parametrize("unlock", WITH)
def test_one_sample_that_is_not_finite_spoils_nothing_below_a_cut(unlock: str, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "mlp" else {"classes": 3, "loss": "cross_entropy"}
    net = dni_fx.transform(three_layers(), X, cuts=["1", "3"], unlock=unlock, synthesizer=kind, **options)
    x = X.clone()
    x[2, 3] = float("nan")
    context = {"dni_context": torch.arange(len(X)) % 3} if options else {}
    net(x, **context).square().mean().backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None and not name.startswith("4."):
            assert parameter.grad.isfinite().all(), name
    assert {name: values["skipped"] > 0 for name, values in net.dni.metrics().items()} == {
        "cut0__1": True,
        "cut1__3": True,
    }


def test_only_a_reset_without_arguments_is_called() -> None:
    """A plain module may have an attribute or a method of this name for something else."""

    class Plain(torch.nn.Linear):
        def __init__(self, activation: Any, context_size: int) -> None:
            super().__init__(activation.features, activation.features)

        def forward(self, activation: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(activation)

    class Number(Plain):
        reset = 5

    class OfRows(Plain):
        def reset(self, rows: torch.Tensor) -> None:
            raise AssertionError

    class Counted(Plain):
        resets = 0

        def reset(self, rows: torch.Tensor | None = None) -> None:
            self.resets += 1

    for cls in (Plain, Number, OfRows):
        transformed(synthesizer=cls).dni.reset()
    net = transformed(synthesizer=Counted)
    net.dni.reset()
    assert synthesizer_of(net).resets == 1
