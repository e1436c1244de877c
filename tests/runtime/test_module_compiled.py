"""compile=True: each segment by itself, and the same training."""

import copy
import pickle
from typing import Any

import pytest
import torch
from nets import perceptron
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import dni_fx
from dni_fx import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # dynamo looks at tensors
]
X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def trained(steps: int = 4, **options: Any) -> nn.Module:
    torch._dynamo.reset()
    model = perceptron()
    torch.manual_seed(1)
    context = {"dni_context": Y} if "classes" in options else {}
    if options.get("step") == "segment":
        net = dni_fx.transform(model, X, optimizer=lambda p: torch.optim.Adam(p, 1e-2), **options).train()
        optimizer: Any = net.dni.optimizer
    else:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        net = dni_fx.transform(model, X, optimizer=optimizer, **options).train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X, **context), Y).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(
    "options",
    [
        {"cuts": 2, "frontend": "modules"},
        {"cuts": 2, "classes": 3, "loss": "cross_entropy", "synthesizer": "guided_head"},
        {"cuts": 2, "step": "segment", "training": Training(every=2)},
        pytest.param({"cuts": 3}, marks=pytest.mark.slow),
        pytest.param({"cuts": 3, "frontend": "export"}, marks=pytest.mark.slow),
        pytest.param({"cuts": 3, "unlock": "none"}, marks=pytest.mark.slow),
        pytest.param({"cuts": 3, "classes": 3}, marks=pytest.mark.slow),
        pytest.param({"cuts": 3, "training": Training(warmup=2)}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_and_plain_train_alike(options: dict[str, Any]) -> None:
    one, other = trained(**options), trained(**options, compile={"backend": "aot_eager"})
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_every_segment_is_one_graph() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    trained(cuts=3, compile={"backend": counter})
    assert counter.frame_count == 3


@pytest.mark.slow
def test_with_the_default_backend() -> None:
    one, other = trained(cuts=3), trained(cuts=3, compile=True)
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_what_unlocks_is_not_one_graph() -> None:
    torch._dynamo.reset()
    net = dni_fx.transform(perceptron(), X, cuts=3, compile={"backend": "eager", "fullgraph": True}).train()
    with pytest.raises(Exception, match="compiled one by one"):
        net(X)


def test_eval_and_copies() -> None:
    net = trained(cuts=3, compile={"backend": "aot_eager"})
    net.eval()
    expected = dni_fx.restore(net)(X)
    torch.testing.assert_close(net(X), expected)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(copied(X), expected)
    assert dni_fx.check(net, X)
