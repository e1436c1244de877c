"""Synthesizers that carry a state from call to call."""

import copy
import pickle

import pytest
import torch
from made import make, wake

X = torch.randn(6, 8)
RECURRENT = ["lstm", "gru", "rnn"]


@pytest.mark.parametrize("name", RECURRENT)
def test_the_state_is_carried_and_reset(name: str) -> None:
    synthesizer = make(name, (6, 8))
    wake(synthesizer)
    first, second = synthesizer(X), synthesizer(X)
    assert not torch.allclose(first, second)
    synthesizer.reset()
    torch.testing.assert_close(synthesizer(X), first)
    synthesizer(torch.randn(3, 8))  # another batch size: the state is dropped, here and back again
    torch.testing.assert_close(synthesizer(X), first)


@pytest.mark.parametrize("name", RECURRENT)
def test_calls_of_a_step_are_a_call_of_a_sequence(name: str) -> None:
    steps, whole = make(name, (6, 8)), make(name, (6, 4, 8))
    wake(steps)
    whole.load_state_dict(steps.state_dict())
    sequence = torch.randn(6, 4, 8)
    one_by_one = torch.stack([steps(sequence[:, t]) for t in range(4)], 1)
    torch.testing.assert_close(one_by_one, whole(sequence))
    torch.testing.assert_close(whole(sequence), whole(sequence))  # each sequence starts anew
    carrying = make(f"{name}(carry=True)", (6, 4, 8))
    carrying.load_state_dict(steps.state_dict())
    assert not torch.allclose(carrying(sequence), carrying(sequence))


def test_the_state_is_no_part_of_the_weights() -> None:
    synthesizer = make("lstm", (6, 8))
    wake(synthesizer)
    names = list(synthesizer.state_dict())
    predicted = synthesizer(X)
    predicted.sum().backward()
    assert list(synthesizer.state_dict()) == names
    again = pickle.loads(pickle.dumps(copy.deepcopy(synthesizer)))
    torch.testing.assert_close(again(X), synthesizer(X))


@pytest.mark.parametrize("name", RECURRENT)
def test_it_learns_what_depends_on_the_step_before(name: str) -> None:
    """Which a linear one cannot: it is left with the variance of the target."""
    synthesizer = make(f"{name}(hidden_size=24)", (32, 6, 4))
    optimizer = torch.optim.Adam(synthesizer.parameters(), 0.02)
    for _ in range(250):
        h = torch.randn(32, 6, 4)
        target = torch.cat([torch.zeros(32, 1, 4), h[:, :-1].tanh()], 1)
        optimizer.zero_grad()
        error = (synthesizer(h) - target).square().mean() / target.square().mean()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 0.3
