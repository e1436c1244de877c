"""What a comparison says of its numbers."""

import pytest

from dni_fx.comparison import Comparison, Record, verdict


def record(name: str, loss: float, activations: int, seconds: float, segments: int = 1, failed: str = "") -> Record:
    losses = [loss + 0.01 * (i % 3) for i in range(50)]
    return Record(name, segments, losses, [seconds] * 50, activations=activations, failed=failed)


BACKPROP, CHECKPOINTING = record("backprop", 1.0, 100, 1.0), record("checkpointing", 1.0, 40, 1.3)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (
            record("2 segments", 1.5, 60, 1.5, 2),
            ["higher by 0.5 (+49.5 %)", "better choice here"],
        ),
        (record("4 segments", 1.5, 20, 1.5, 4), ["unless the memory must be lower", "fewer cuts"]),
        (record("4 segments", 1.0, 20, 1.1, 4), ["no clear difference", "needs less memory and less time", "longer"]),
        (
            record("4 segments", 1.0, 20, 1.5, 4),
            ["20 % of backprop's", "the cut model needs less memory."],
        ),
        (record("4 segments", 1.0, 60, 1.1, 4), ["the cut model needs less time, but more memory"]),
        (record("4 segments", 1.0, 40, 1.1, 4), ["the cut model needs less time, and no less memory"]),
        (record("4 segments", 0.5, 60, 1.5, 4), ["lower by 0.5", "has the lower loss"]),
    ],
)
def test_sentences(cut: Record, words: list[str]) -> None:
    text = " ".join(verdict(Comparison((BACKPROP, CHECKPOINTING, cut), 50, 50, 8, "mse_loss", True)))
    for word in words:
        assert any(part in text for part in word.split("|")), text


def test_nothing_saved() -> None:
    cut = record("2 segments", 1.0, 110, 1.5, 2)
    flat = record("checkpointing", 1.0, 100, 1.5)
    text = " ".join(verdict(Comparison((BACKPROP, flat, cut), 50, 50, 8, "mse_loss", True)))
    assert "backprop is the better choice" in text


def test_the_best_cut_is_judged() -> None:
    bad, good = record("4 segments", 2.0, 20, 1.5, 4), record("2 segments", 1.1, 60, 1.5, 2)
    assert "Cut into 2 segments," in verdict(Comparison((BACKPROP, CHECKPOINTING, bad, good), 50, 50, 8, "l", True))[0]


def test_no_cut() -> None:
    failed = record("auto cuts", 1, 1, 1, failed="no legal cut")
    text = verdict(Comparison((BACKPROP, CHECKPOINTING, failed), 50, 50, 8, "mse_loss", True))
    assert text == ["No cut model was trained: below is why."]
