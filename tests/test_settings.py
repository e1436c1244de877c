"""How synthesizers are trained: scale, clip, warm-up, every, lr, own optimizer; mix; what is not finite; metrics."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.cli.parsing import parse_mix
from dni_fx.errors import DniFxError
from dni_fx.settings import Training
from dni_fx.synthesizers.base import Activation, Synthesizer

X = torch.randn(16, 8)
WITH = ["none", "backward"]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def transformed(unlock: str = "backward", **options: Any) -> Any:
    return dni_fx.transform(mlp(), X, cuts=["1"], unlock=unlock, **options)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    net(X).square().mean().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def target_of(net: nn.Module) -> Tensor:
    """The gradient of each sample's own loss at the cut, by backprop."""
    model = mlp()
    model.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("dni.")})
    h = model[:2](X).detach().requires_grad_()
    model[2:](h).square().mean().backward()
    assert h.grad is not None
    return h.grad * len(X)


def synthesizer_of(net: Any) -> nn.Module:
    (made,) = net.dni.synthesizers.values()
    return made


# ------------------------------------------------------------------------------------------------ warm-up, mix
@pytest.mark.parametrize("unlock", WITH)
def test_a_warm_up_uses_the_true_gradients(unlock: str) -> None:
    net, model = transformed(unlock, training=Training(warmup=2)), mlp()
    for step in range(4):
        expected, found = gradients(model), gradients(net)
        if step < 2:
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient)
        else:
            below = found.get("0.weight", torch.zeros(()))
            assert not below.any()  # an untrained synthesizer says zero
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
    full = gradients(mlp())["0.weight"]
    for share in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        torch.testing.assert_close(gradients(net)["0.weight"], share * full)
    segment: Any = net.dni.segment0
    assert int(segment.steps) == 6


def test_plain_settings_put_nothing_into_the_state_dict() -> None:
    names = [n for n in transformed().state_dict() if n.startswith("dni.")]
    assert all("synthesizer" in name for name in names)


MIXES = [("0.5", 0.5), ("1:0:100", (1.0, 0.0, 100))]


@pytest.mark.parametrize(("text", "mix"), MIXES)
def test_mix_on_the_command_line(text: str, mix: Any) -> None:
    assert parse_mix(text) == mix
    for wrong in ("a", "1:0", "1:0:b"):
        with pytest.raises(DniFxError):
            parse_mix(wrong)


def test_a_plan_keeps_the_settings() -> None:
    net = transformed("none", mix=(1.0, 0.5, 7), training=Training(scale="rms", clip=2.0, warmup=3, every=2))
    plan = dni_fx.Plan.from_json(net.dni.plan.to_json())
    assert plan.rewrite == net.dni.plan.rewrite
    assert plan.rewrite is not None and plan.rewrite.settings.training.scale == "rms"


# --------------------------------------------------------------------------------------- scale, clip, every
class Half(Synthesizer):
    """Says a constant; what comes back for it is kept."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.said = nn.Parameter(torch.full(activation.shape, 0.5))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        return self.said * 1.0


@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_scale(unlock: str, scale: float) -> None:
    """The synthesizer regresses scale * target; its gradient is that of the batch mean of half the squared error."""
    net = transformed(unlock, synthesizer=Half, training=Training(scale=scale))
    found = gradients(net)["dni.cut0__1.synthesizer.said"]
    torch.testing.assert_close(found, (0.5 - scale * target_of(net)) / 16)
    model: Any = mlp()
    h = model[:2](X)
    h.backward(torch.full_like(h, 0.5 / scale / 16))  # and half as much as it says goes upstream
    torch.testing.assert_close(net.get_parameter("0.weight").grad, model[0].weight.grad)


def test_scale_by_the_running_root_mean_square() -> None:
    net = transformed(synthesizer=Half, training=Training(scale="rms"))
    gradients(net)
    square = target_of(net).square().mean()
    torch.testing.assert_close(net.dni.cut0__1.square, square)
    found = gradients(net)["dni.cut0__1.synthesizer.said"]
    torch.testing.assert_close(found, (0.5 - target_of(net) / square.sqrt()) / 16)


def test_without_labels_the_synthesizers_chosen_by_name_follow_faster() -> None:
    scales = [
        transformed(synthesizer=kind, **options).dni.cut0__1.scale
        for kind, options in [("linear", {}), ("linear", {"classes": 3}), ("linear", {"context_size": 2}), (Half, {})]
    ]
    assert scales == [1 / 16, 1.0, 1.0, 1.0]
    said = transformed(synthesizer="linear", training=Training(scale=0.5))
    assert said.dni.cut0__1.scale == said.dni.plan.rewrite.settings.training.scale == 0.5


@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize(
    "training", [Training(scale="rms"), Training(scale=0.1), Training(clip=0.1), Training(warmup=3), Training(every=2)]
)
def test_the_check_passes_with_every_option(unlock: str, training: Training) -> None:
    report = dni_fx.check(transformed(unlock, training=training), X)
    assert report, report


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_running_scale_goes_with_the_dtype(dtype: torch.dtype) -> None:
    net = transformed(training=Training(scale="rms")).to(dtype)
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
    torch.testing.assert_close(gradients(net)["dni.cut0__1.synthesizer.said"], (0.5 - held) / 16)


@pytest.mark.parametrize("unlock", WITH)
def test_every(unlock: str) -> None:
    net = transformed(unlock, training=Training(every=3))
    trained = [any(n.startswith("dni.") and g.any() for n, g in gradients(net).items()) for _ in range(6)]
    assert trained == [True, False, False, True, False, False]


# ----------------------------------------------------------------------------------------------- optimizers
def test_a_learning_rate_of_their_own() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    dni_fx.transform(model, X, cuts=2, optimizer=optimizer, training=Training(lr=5.0))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 5e-3]


def test_an_optimizer_of_their_own() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    made = []

    def factory(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, 1e-2))
        return made[0]

    net = dni_fx.transform(model, X, cuts=2, optimizer=optimizer, training=Training(optimizer=factory))
    before = copy.deepcopy(synthesizer_of(net).state_dict())
    optimizer.zero_grad()
    net(X).square().mean().backward()
    optimizer.step()
    assert len(optimizer.param_groups) == 1 and len(made) == 1
    assert any(not torch.equal(v, before[k]) for k, v in synthesizer_of(net).state_dict().items())
    assert all(p.grad is None for p in net.dni.parameters())  # they do not add up


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


# -------------------------------------------------------------------------------------- what is not finite
@pytest.mark.parametrize("unlock", WITH)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_goes_nowhere(unlock: str, bad: float) -> None:
    net = transformed(unlock, synthesizer=Half)
    with torch.no_grad():
        synthesizer_of(net).said[3, 2] = bad  # type: ignore[index]
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
    said = grads.get("dni.cut0__1.synthesizer.said")
    assert said is None or not said.any()
    assert net.dni.metrics()["cut0__1"]["skipped"] == 1
    assert grads["0.weight"].any()  # its prediction was good


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_a_true_gradient_that_is_not_finite_is_not_mixed_in(mix: float) -> None:
    net = transformed("none", synthesizer=Half, mix=mix)
    (net(X).sum() * float("nan")).backward()
    assert net.get_parameter("0.weight").grad is None


@pytest.mark.parametrize("kind", ["mlp", "local_head", "guided_head", "critic", "critic(fit='value')"])
@pytest.mark.parametrize("unlock", WITH)
def test_one_sample_that_is_not_finite_spoils_nothing_below_a_cut(unlock: str, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "mlp" else {"classes": 3, "loss": "cross_entropy"}
    net = dni_fx.transform(mlp(), X, cuts=["1", "3"], unlock=unlock, synthesizer=kind, **options)
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


# ---------------------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("unlock", WITH)
def test_metrics(unlock: str) -> None:
    net = transformed(unlock, synthesizer=Half)
    assert net.dni.metrics() == {}
    gradients(net)
    target = target_of(net) / 16
    synthetic = torch.full_like(target, 0.5 / 16)
    found = net.dni.metrics()["cut0__1"]
    expected = {
        "cosine": torch.cosine_similarity(synthetic.flatten(), target.flatten(), dim=0),
        "relative_error": (synthetic - target).norm() / target.norm(),
        "target_norm": target.norm(),
        "prediction_norm": synthetic.norm(),
        "steps": 1,
        "skipped": 0,
    }
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-4)


def test_metrics_are_nan_until_a_target_has_come_back() -> None:
    net = transformed()
    net(X)
    found = net.dni.metrics()["cut0__1"]
    assert math.isnan(found["relative_error"]) and found["steps"] == 1


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))


def test_metrics_are_logged() -> None:
    net, writer, seen = transformed(), Writer(), []
    handle = dni_fx.log_metrics(net, writer, every=2)
    dni_fx.log_metrics(net, lambda step, metrics: seen.append((step, metrics)), every=3)
    for _ in range(7):
        gradients(net)
    net.eval()
    net(X)
    assert sorted({step for _, _, step in writer.seen}) == [2, 4, 6]
    assert "dni/cut0__1/cosine" in {tag for tag, _, _ in writer.seen}
    assert [step for step, _ in seen] == [3, 6] and seen[0][1]["cut0__1"]["steps"] == 3
    assert dni_fx.check(net, X)
    handle.remove()
    net.train()
    gradients(net)
    gradients(net)
    assert max(step for _, _, step in writer.seen) == 6


def test_logging_says_what_is_wrong() -> None:
    with pytest.raises(DniFxError, match="not a Linear"):
        dni_fx.log_metrics(nn.Linear(2, 2), print)  # type: ignore[arg-type]
    with pytest.raises(DniFxError, match="every=0"):
        dni_fx.log_metrics(transformed(), print, every=0)
    with pytest.raises(DniFxError, match="add_scalar"):
        dni_fx.log_metrics(transformed(), 3)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- compiled
def test_what_changes_from_step_to_step_is_not_compiled() -> None:
    net = transformed("none", training=Training(warmup=2))
    with pytest.raises(Exception, match="cannot be compiled"):
        torch.compile(net, backend="eager", fullgraph=True)(X)
    torch._dynamo.reset()
    compiled = torch.compile(transformed("none"), backend="aot_eager", fullgraph=True)
    plain = transformed("none")
    compiled(X).square().mean().backward()
    gradients(plain)
    for (name, one), (_, other) in zip(compiled._orig_mod.named_parameters(), plain.named_parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_zero_grad_reaches_an_optimizer_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    net = dni_fx.transform(
        model, torch.rand(4, 6), cuts=["1"], optimizer=optimizer, training=Training(optimizer=torch.optim.Adam)
    ).train()
    net(torch.rand(4, 6)).sum().backward()  # a batch that is skipped
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.dni.parameters())
    assert copy.deepcopy(net).dni.optimizer is None
    assert isinstance(net.dni.optimizer, torch.optim.Adam)
