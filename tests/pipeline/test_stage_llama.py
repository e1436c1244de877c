"""A Llama of transformers as three stages, by hand in one process: rotary embeddings go through all of them."""

from typing import Any

import pytest
import torch
from in_pipeline import optimizer_of
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import dni_fx
from dni_fx.pipeline import stages
from dni_fx.pipeline.batch import Batch
from dni_fx.pipeline.targets import Targets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # transformers' advice about configurations
]

WORDS = torch.randint(0, 32, (4, 7), generator=torch.Generator().manual_seed(0))
X, Y = WORDS[:, :-1], WORDS[:, 1:]


def made() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 32}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, use_cache=False))
    options = {"cuts": ["model.layers.0", "model.layers.1"], "synthesizer": "linear", "verify": False}
    net = dni_fx.transform(model, example_kwargs={"input_ids": X}, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.dni.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # else they predict zero
    return net.train()


def loss_of(output: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())


def passed(batches: list[Batch], learns_below: bool) -> None:
    """Run the batch in each stage, on the values from the one below."""
    values: Any = []
    for batch in batches:
        batch.given = values
        batch.run(0, lambda _: None, learns_below=learns_below and batch.stage.index > 0)
        values = [value.detach() if isinstance(value, Tensor) else value for value in batch.passed]


def batches_of(found: Any) -> list[Batch]:
    return [Batch(stage, 1, [], Y, {"input_ids": X}, loss_of) for stage in found]


def test_a_llama() -> None:
    net = made()
    found = stages(made())
    assert len(set(found[1].takes) & set(found[2].takes)) >= 2  # the cosines and sines

    for stage in found:
        stage.eval()
    batches = batches_of(found)
    with torch.no_grad():
        passed(batches, learns_below=False)
        assert torch.equal(batches[-1].outputs[0].logits, net.eval()(input_ids=X).logits)

    net.train()
    optimizer = optimizer_of(net)
    loss_of(net(input_ids=X), Y).backward()
    optimizer.step()
    batches, targets = batches_of(found), [Targets(stage, sync=True, most=1) for stage in found]
    for stage in found:
        stage.train()
    passed(batches, learns_below=True)
    for below, above, target in zip(batches[-2::-1], batches[:0:-1], targets[-2::-1], strict=True):
        target.keep(0, below.passed, below.kept)
        target.learn(0, above.gradients(), 0)
    joined = {}
    for stage in found:
        optimizer_of(stage).step()
        joined |= stage.state_dict()
    wanted = net.state_dict()
    assert joined.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(joined[key], value, rtol=1e-6, atol=1e-7, msg=key)
