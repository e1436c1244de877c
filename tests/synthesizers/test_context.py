"""Labels and contexts, brought to the shape of an activation."""

from typing import Any

import pytest
import torch
from nets import two_layers
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import ContextError
from dni_fx.synthesizers.context import expand_context

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


X = torch.rand(4, 6)


@pytest.mark.parametrize("settings", [{"classes": 3}, {"context_size": 3}])
def test_a_missing_context_says_what_to_pass(settings: dict[str, int]) -> None:
    net = dni_fx.transform(two_layers(), X, cuts=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(ContextError, match=r"call net\(\.\.\., dni_context=\.\.\.\)"):
        net(X)
    net.eval()
    net(X)
    net.train()
    with torch.no_grad():
        net(X)
    net(X, dni_context=torch.rand(4, 3)).sum().backward()


@pytest.mark.parametrize("synthesizer", ["linear", "guided_head"])
def test_a_context_of_one_number_a_sample(synthesizer: str) -> None:
    """Targets of a regression are (N,) as often as (N, 1)."""
    x, y = torch.rand(4, 6), torch.rand(4)
    found = []
    for context in (y, y.unsqueeze(-1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
        net = dni_fx.transform(model, x, cuts=2, context_size=1, loss="mse_loss", synthesizer=synthesizer)
        net(x, dni_context=context).square().mean().backward()
        found.append([p.grad for p in net.dni.parameters() if p.grad is not None])
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_number_for_each_position() -> None:
    numbers = torch.rand(4, 5)
    expanded = expand_context(numbers, H, 2, classes=None, size=1)
    assert torch.equal(expanded, numbers.unsqueeze(-1))
    assert expand_context(numbers[:, 0], H, 2, classes=None, size=1).shape == (4, 5, 1)
