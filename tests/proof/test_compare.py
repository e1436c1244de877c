"""Whether tensors are equal: what is not finite, and truth values."""

import pytest
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


def test_equal_values_that_are_not_finite_are_equal() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    assert close({"a": values}, {"a": values.clone()})[0]
    for place, other in ((1, 0.0), (0, float("nan")), (2, -float("inf"))):
        changed = values.clone()
        changed[place] = other
        assert not close({"a": changed}, {"a": values})[0]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch 2.11
def test_sparse_tensors_are_compared_by_their_values() -> None:
    dense = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    rows = torch.sparse_coo_tensor(torch.tensor([[1]]), dense[1:], (2, 2), check_invariants=True)
    twice = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), dense[[1, 1]] / 2, (2, 2), check_invariants=True
    )  # not coalesced
    assert close({"a": twice}, {"a": rows})[0] and close({"a": twice}, {"a": dense})[0]
    assert not close({"a": twice}, {"a": 2 * rows})[0]


def test_an_infinity_in_both_hides_no_difference_elsewhere() -> None:
    infinite, one = torch.tensor([float("inf")]), torch.tensor([1.0])
    assert not close({"a": infinite, "b": 2 * one}, {"a": infinite.clone(), "b": one})[0]
