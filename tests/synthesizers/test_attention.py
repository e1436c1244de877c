"""The synthesizer `attention`."""

import torch
from made import make, wake


def test_attention_sees_the_tokens_to_come() -> None:
    synthesizer = make("attention", (2, 5, 8))
    wake(synthesizer)
    h = torch.randn(2, 5, 8)
    other = h.clone()
    other[:, 4] += 1
    assert not torch.allclose(synthesizer(h)[:, 0], synthesizer(other)[:, 0])
