"""One contract for every synthesizer there is; contexts; what is chosen for which activation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import ContextError, DniFxError
from dni_fx.synthesizers import registry
from dni_fx.synthesizers.base import Activation, Synthesizer
from dni_fx.synthesizers.context import expand_context
from dni_fx.synthesizers.registry import REGISTRY, register

CPU = torch.device("cpu")
PLAIN = ["attention", "conv", "gru", "linear", "lstm", "mlp", "rnn"]  # with all options at their defaults
SHAPES = [
    # shape, feature axis, name
    ((5, 7), 1, "vector"),
    ((5, 3), 1, "narrow"),
    ((1, 7), 1, "one-sample"),
    ((5, 4, 7), 2, "sequence"),
    ((5, 3, 4, 7), 3, "channels-last"),
    ((5, 7, 9), 1, "map1d"),
    ((5, 7, 6, 5), 1, "map2d"),
    ((5, 7, 1, 1), 1, "map2d-of-one"),
    ((5, 3, 4, 5, 3), 1, "map3d"),
]


def _context(shape: tuple[int, ...], axis: int, size: int) -> Tensor | None:
    """What a `Crossing` passes: shaped like the activation but for the feature axis."""
    return torch.rand([size if i == axis else n for i, n in enumerate(shape)]) if size else None


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize(("shape", "axis"), [s[:2] for s in SHAPES], ids=[s[2] for s in SHAPES])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_contract(name: str, shape: tuple[int, ...], axis: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = Activation(shape, dtype, CPU, axis)
    try:
        synthesizer = REGISTRY[name](activation, size).to(dtype)
    except DniFxError:
        applies = {"conv": len(shape) > 2 and axis == 1, "attention": len(shape) == 3 and axis == 2}
        assert not applies.get(name, len(shape) in (2, 3) and axis == len(shape) - 1)  # says that it does not apply
        return
    h = torch.randn(shape).to(dtype)
    context = _context(shape, axis, size)
    predicted = synthesizer(h, context)
    assert (predicted.shape, predicted.dtype) == (h.shape, dtype)
    assert not predicted.any()  # untrained, it predicts no gradient
    step = torch.optim.SGD(synthesizer.parameters(), 0.1)
    for _ in range(3):  # where the last layer is zero, the first one gets no gradient in the first step
        step.zero_grad()
        synthesizer(h, context).backward(torch.rand(shape).to(dtype) - 0.8)
        step.step()
    for parameter_name, parameter in synthesizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
    assert synthesizer(h, context).any()
    longer = torch.cat([h, h])
    more = None if context is None else torch.cat([context, context])
    torch.testing.assert_close(synthesizer(longer, more)[: len(h)], synthesizer(h, context))
    if context is not None and dtype == torch.float64:
        assert not torch.equal(synthesizer(h, context), synthesizer(h, 1 - context))
    assert activation.features == shape[axis]


@pytest.mark.parametrize("name", PLAIN)
def test_a_synthesizer_learns_a_linear_rule(name: str) -> None:
    """Its gradient is that of half the squared error: the same rule that `ops` applies."""
    torch.manual_seed(0)
    shape = {"conv": (64, 4, 6), "attention": (64, 6, 4)}.get(name, (64, 4))
    axis = 1 if name == "conv" else len(shape) - 1
    synthesizer = REGISTRY[name](Activation(shape, torch.float32, CPU, axis), 0)
    optimizer = torch.optim.Adam(synthesizer.parameters(), 0.05)
    h = torch.randn(shape)
    target = 0.7 * h - 0.2
    for _ in range(200):
        optimizer.zero_grad()
        predicted = synthesizer(h, None)
        predicted.backward((predicted - target).detach() / 64)
        optimizer.step()
    error = (synthesizer(h, None).detach() - target).norm() / target.norm()
    assert error.item() < 0.2


def test_conv_takes_any_size() -> None:
    synthesizer = REGISTRY["conv"](Activation((2, 3, 8, 8), torch.float32, CPU, 1), 0)
    for size in ((2, 3, 8, 8), (5, 3, 7, 9), (1, 3, 1, 1), (2, 3, 33, 2)):
        assert synthesizer(torch.rand(size), None).shape == size


# -------------------------------------------------------------------------------------------------- auto
class ViT(nn.Module):
    """Channels last after a convolution, then layer norm: (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.norm = nn.LayerNorm(6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.patch(x).permute(0, 2, 3, 1))
        return self.b(torch.relu(self.a(h)))


class ThereAndBack(nn.Module):
    """Channels last and first again; then one spatial axis is averaged over."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.mix = nn.Linear(6, 5)
        self.last = nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.mix(torch.permute(self.patch(x), (0, 2, 3, 1))))
        return self.last(torch.tanh(torch.movedim(h, -1, 1)).mean(2))


class Grid(nn.Module):
    """A sequence that is unrolled to a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.relu(self.a(x).view(x.shape[0], 3, 4, 5))
        return self.b(grid.swapaxes(2, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        return self.b(torch.relu(self.a(h)))


def _sound() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3), nn.Flatten(), nn.Linear(6 * 6, 2))


def _volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 2))


def _image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
        nn.Linear(8, 2),
    )  # fmt: skip


def _text() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


IMAGE = torch.rand(2, 3, 8, 8)
AUTO: list[tuple[Callable[[], nn.Module], Tensor, str, str, int]] = [
    # model, example, cut after, the synthesizer, the feature axis
    (_sound, torch.rand(2, 3, 10), "0", "conv", 1),
    (_sound, torch.rand(2, 3, 10), "1", "conv", 1),
    (_sound, torch.rand(2, 3, 10), "3", "linear", -1),
    (_image, IMAGE, "1", "conv", 1),
    (_image, IMAGE, "3", "conv", 1),
    (_image, IMAGE, "4", "linear", -1),
    (_image, IMAGE, "6", "linear", -1),
    (_volume, torch.rand(2, 1, 4, 4, 4), "2", "conv", 1),
    (ViT, IMAGE, "patch", "conv", 1),
    (ViT, IMAGE, "permute", "linear", -1),
    (ViT, IMAGE, "norm", "linear", -1),
    (ThereAndBack, IMAGE, "relu", "linear", -1),
    (ThereAndBack, IMAGE, "movedim", "conv", 1),
    (ThereAndBack, IMAGE, "tanh", "conv", 1),
    (ThereAndBack, IMAGE, "mean", "conv", 1),
    (Grid, torch.rand(2, 12, 6), "relu", "linear", -1),
    (Grid, torch.rand(2, 12, 6), "swapaxes", "linear", 2),
    (ViT, IMAGE, "relu", "linear", -1),
    (Tokens, IMAGE, "patch", "conv", 1),
    (Tokens, IMAGE, "flatten", "conv", 1),
    (Tokens, IMAGE, "transpose", "linear", -1),
    (Tokens, IMAGE, "relu", "linear", -1),
    (_text, torch.randint(0, 9, (2, 5)), "0", "linear", -1),
    (_text, torch.randint(0, 9, (2, 5)), "2", "linear", -1),
]


@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize(
    ("make", "example", "cut", "name", "axis"), AUTO, ids=[f"{c[0].__name__}-{c[2]}-{c[3]}" for c in AUTO]
)
def test_auto(make: Any, example: Tensor, cut: str, name: str, axis: int, unlock: str) -> None:
    net = dni_fx.transform(make(), example, cuts=[cut], classes=3, unlock=unlock)
    plan = net.dni.plan
    assert plan.rewrite is not None
    assert set(plan.rewrite.synthesizers.values()) == {name}
    shape = plan.cuts[0].tensors[0].shape
    assert plan.cuts[0].tensors[0].axis % len(shape) == axis % len(shape)
    net(example, dni_context=torch.tensor([0, 2])).sum().backward()
    assert all(p.grad is not None for p in net.dni.parameters())


# ------------------------------------------------------------------------------------------------ contexts
H = torch.rand(4, 5, 6)  # four sequences of five vectors
MAP = torch.rand(4, 6, 2, 3)

EXPANDED: list[tuple[str, Tensor, Tensor, int, int | None, tuple[int, ...]]] = [
    # context, activation, feature axis, classes, the shape that comes out
    ("labels", torch.tensor([0, 1, 2, 1]), torch.rand(4, 6), 1, 3, (4, 3)),
    ("labels-negative-axis", torch.tensor([0, 1, 2, 1]), torch.rand(4, 6), -1, 3, (4, 3)),
    ("labels-int32", torch.tensor([0, 1, 2, 1], dtype=torch.int32), torch.rand(4, 6), 1, 3, (4, 3)),
    ("labels-bool", torch.tensor([True, False, True, True]), torch.rand(4, 6), 1, 2, (4, 2)),
    ("labels-uint8", torch.tensor([0, 156, 2, 1], dtype=torch.uint8), torch.rand(4, 6), 1, 200, (4, 200)),
    ("one-hot", torch.eye(3)[[0, 1, 2, 1]], torch.rand(4, 6), 1, 3, (4, 3)),
    ("soft", torch.full((4, 3), 1 / 3), torch.rand(4, 6), 1, 3, (4, 3)),
    ("labels-of-sequences", torch.tensor([0, 1, 2, 1]), H, 2, 3, (4, 5, 3)),
    ("labels-of-tokens", torch.randint(0, 3, (4, 5)), H, 2, 3, (4, 5, 3)),
    ("soft-of-tokens", torch.rand(4, 5, 3), H, 2, 3, (4, 5, 3)),
    ("labels-of-images", torch.tensor([0, 1, 2, 1]), MAP, 1, 3, (4, 3, 2, 3)),
    ("labels-of-pixels", torch.randint(0, 3, (4, 2, 3)), MAP, 1, 3, (4, 3, 2, 3)),
    ("vector", torch.rand(4, 7), H, 2, None, (4, 5, 7)),
    ("vector-of-images", torch.rand(4, 7), MAP, 1, None, (4, 7, 2, 3)),
    ("vectors-of-tokens", torch.rand(4, 5, 7), H, 2, None, (4, 5, 7)),
    ("vector-of-integers", torch.ones(4, 7, dtype=torch.int64), H, 2, None, (4, 5, 7)),
]


@pytest.mark.parametrize("case", EXPANDED, ids=[c[0] for c in EXPANDED])
def test_expand_context(case: Any) -> None:
    _, context, activation, axis, classes, shape = case
    size = classes or 7
    found = expand_context(context, activation, axis, classes=classes, size=size)
    assert found.shape == shape
    last = found.movedim(axis, -1).reshape(4, -1, size)
    for sample in range(4):
        given = context[sample]
        if classes and not context.is_floating_point():
            given = nn.functional.one_hot(given.long(), classes)
        given = given.reshape(-1, size)
        for position in range(last.shape[1]):
            expected = given[position if len(given) > 1 else 0]
            torch.testing.assert_close(last[sample, position], expected, check_dtype=False)


WRONG: list[tuple[str, Tensor, Tensor, int, int | None, str]] = [
    ("too-few", torch.tensor([0, 1, 2]), torch.rand(4, 6), 1, 3, "in the order of the batch"),
    ("too-many", torch.zeros(5, dtype=torch.long), torch.rand(4, 6), 1, 3, "in the order of the batch"),
    ("one-label-for-all", torch.tensor(1), torch.rand(4, 6), 1, 3, "dni_context"),
    ("scalar", torch.tensor(1.0), torch.rand(4, 6), 1, 3, "expected integer labels, or 3 values a row"),
    ("float-labels", torch.rand(4), torch.rand(4, 6), 1, 3, "expected integer labels"),
    ("wrong-classes", torch.rand(4, 2), torch.rand(4, 6), 1, 3, "[4, 2]"),
    ("wrong-size", torch.rand(4, 6), torch.rand(4, 6), 1, None, "expected 7 values a row"),
    ("labels-without-classes", torch.tensor([0, 1, 2, 1]), torch.rand(4, 6), 1, None, "7 values a row"),
    ("more-axes", torch.randint(0, 3, (4, 5)), torch.rand(4, 6), 1, 3, "positions"),
    ("wrong-length", torch.randint(0, 3, (4, 6)), H, 2, 3, "positions"),
    ("batch-second", torch.randint(0, 3, (5, 4)), H, 2, 3, "positions"),
    ("label-too-large", torch.tensor([0, 1, 3, 1]), torch.rand(4, 6), 1, 3, "labels from 0 to 2"),
    ("label-negative", torch.tensor([0, 1, -1, 1]), torch.rand(4, 6), 1, 3, "labels from 0 to 2"),
    ("one-vector-for-all", torch.rand(7), torch.rand(4, 6), 1, None, "in the order of the batch"),
    ("one-column", torch.tensor([[0], [1], [2], [1]]), torch.rand(4, 6), 1, 3, "positions"),
]


@pytest.mark.parametrize("case", WRONG, ids=[c[0] for c in WRONG])
def test_contexts_that_do_not_fit(case: Any) -> None:
    _, context, activation, axis, classes, text = case
    with pytest.raises(ContextError) as caught:
        expand_context(context, activation, axis, classes=classes, size=classes or 7)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.rand(4, 6)


@pytest.mark.parametrize("settings", [{"classes": 3}, {"context_size": 3}])
def test_a_missing_context_says_what_to_pass(settings: dict[str, int]) -> None:
    net = dni_fx.transform(mlp(), X, cuts=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(ContextError, match=r"call net\(\.\.\., dni_context=\.\.\.\)"):
        net(X)
    net.eval()
    net(X)
    net.train()
    with torch.no_grad():
        net(X)
    net(X, dni_context=torch.rand(4, 3)).sum().backward()


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"classes": 1}, "2 or more"),
    ({"classes": 0}, "2 or more"),
    ({"context_size": 0}, "1 or more"),
    ({"classes": 3, "context_size": 3}, "exclude each other"),
    ({"mix": 0.5}, "needs unlock='none'"),
    ({"mix": 1.5, "unlock": "none"}, "between 0 and 1"),
    ({"mix": float("nan"), "unlock": "none"}, "between 0 and 1"),
    ({"unlock": "forwards"}, "unlock='forwards'"),
    ({"synthesizer": "convv"}, "no synthesizer named 'convv'; there are auto, "),
    ({"synthesizer": "conv"}, "a conv synthesizer needs a map (N, C, ...)"),
    ({"synthesizer": lambda a, c: None}, "is a NoneType, not an nn.Module"),
]


@pytest.mark.parametrize(("settings", "text"), SETTINGS)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    model = mlp()
    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(model, X, cuts=2, **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "dni")


# ---------------------------------------------------------------------------------------------------- own
class Scale(Synthesizer):
    """A person's own: one factor a feature, and the context's mean."""

    def __init__(self, activation: Activation, context_size: int = 0) -> None:
        super().__init__(activation, context_size)
        self.factor = nn.Parameter(torch.zeros(self.features))
        self.joined = nn.Linear(self.features + context_size, self.features)

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined: Tensor = self.joined(self.with_context(activation, context))
        return self.factor * activation + 0 * joined


def plain(activation: Activation, context_size: int) -> nn.Module:
    """No subclass: any module that takes (activation, context)."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(activation.features, activation.features)

        def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
            return self.layer(h)

    return Plain()


@pytest.mark.parametrize(("own", "name"), [(Scale, "Scale"), (plain, "plain")])
@pytest.mark.parametrize("unlock", ["none", "backward"])
@pytest.mark.parametrize("settings", [{}, {"classes": 3}])
def test_own_synthesizers(own: Any, name: str, unlock: str, settings: Any) -> None:
    net = dni_fx.transform(mlp(), X, cuts=2, synthesizer=own, unlock=unlock, **settings)
    context = {"dni_context": torch.tensor([0, 1, 2, 0])} if settings else {}
    net(X, **context).sum().backward()
    assert all(p.grad is not None for p in net.dni.parameters())
    assert net.dni.plan.rewrite is not None
    assert list(net.dni.plan.rewrite.synthesizers.values()) == [name]


def test_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", REGISTRY.copy())
    register("scale")(Scale)
    net = dni_fx.transform(mlp(), X, cuts=2, synthesizer="scale")
    assert [type(s) for s in net.dni.synthesizers.values()] == [Scale]
    assert "scale" not in REGISTRY


@pytest.mark.parametrize("shape", [(4, 1), (4, 9), (1, 8), (8,), (4, 8, 1)])
def test_an_output_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    class Wrong(Synthesizer):
        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.zeros(shape)

    with pytest.raises(DniFxError) as caught:
        dni_fx.transform(mlp(), X, cuts=2, synthesizer=Wrong)
    assert f"synthesizer Wrong returned {list(shape)} for an activation of shape [4, 8]" in str(caught.value)


def test_an_output_that_goes_wrong_later_is_refused() -> None:
    """For other sizes than those of the example."""

    class Fixed(Synthesizer):
        def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.zeros(4, 8)

    net = dni_fx.transform(mlp(), X, cuts=2, synthesizer=Fixed, verify=False)
    with pytest.raises(DniFxError, match="synthesizer Fixed returned shape"):
        net(X[:2])


def test_the_base_class_says_what_to_define() -> None:
    with pytest.raises(DniFxError, match=r"Synthesizer must define forward\(activation, context\)"):
        dni_fx.transform(mlp(), X, cuts=2, synthesizer=Synthesizer)
