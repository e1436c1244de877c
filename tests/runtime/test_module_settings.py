"""Settings that change from step to step are not compiled."""

import pytest
import torch
from one_cut import X, gradients, transformed

from dni_fx.settings import Training


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
