"""Whether tensors are equal: what is not finite, and truth values."""

import torch

from dni_fx.proof.compare import close


def test_what_is_not_finite_is_caught() -> None:
    nan, one, near = torch.tensor(float("nan")), torch.tensor(1.0), torch.tensor(1.0 + 1e-7)
    for names in ("ab", "ba"):
        got = dict(zip(names, (nan, near), strict=True))
        assert close(got, dict.fromkeys(names, one)) == (False, f"{names[0]} is not finite")


def test_truth_values_are_compared() -> None:
    yes, no = torch.tensor([True, False]), torch.tensor([False, False])
    assert close({"a": yes}, {"a": yes}) == (True, "exact")
    assert not close({"a": yes}, {"a": no})[0]
