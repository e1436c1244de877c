"""The Trainer of transformers trains a rewritten net to the same weights as a loop by hand."""

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from processes import in_processes
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

import dni_fx
from dni_fx import DniFxError
from dni_fx.integrations.huggingface import DecoupledTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # transformers' advice about configurations
]

WORDS = torch.randint(0, 20, (32, 6), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(32) % 2


def bert() -> Any:
    """An encoder, by torch.export; its own loss is the mean over the batch."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def gpt() -> Any:
    """A decoder with tied heads, whose loss takes the number of labels of all accumulated batches."""
    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config)


def labels_of(model: Any) -> torch.Tensor:
    return WORDS if model is gpt else CLASSES


def made(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    example = {"input_ids": WORDS[:4], "labels": labels_of(model)[:4]}
    by_default = {"cuts": 2, "verify": False, "frontend": "export" if model is bert else "modules"}
    return dni_fx.transform(model(), example_kwargs=example, **by_default | options)


class InOrder(DecoupledTrainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(net: Any, model: Any, folder: Path, **arguments: Any) -> Any:
    rows = [{"input_ids": words, "labels": label} for words, label in zip(WORDS, labels_of(model), strict=True)]
    given: dict[str, Any] = {"max_steps": 4, "max_grad_norm": 0.0, "save_strategy": "no", "report_to": []}
    given |= {"use_cpu": True, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "adamw_torch"}
    given |= {"lr_scheduler_type": "constant", "disable_tqdm": True, "seed": 3} | arguments
    return InOrder(net, TrainingArguments(str(folder), **given), train_dataset=rows, eval_dataset=rows[:8])


def by_hand(net: Any, model: Any, accumulate: int = 1, clip: float = 0.0, bf16: bool = False) -> Any:
    net.train()
    optimizer = net.dni.optimizer or torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.0)
    own = set(net.dni.parameters())
    of_all = {"num_items_in_batch": torch.tensor(24.0 * accumulate)} if net.accepts_loss_kwargs else {}
    for step in range(4):
        optimizer.zero_grad()
        for k in range(accumulate):
            rows = slice(4 * (step * accumulate + k), 4 * (step * accumulate + k + 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = net(input_ids=WORDS[rows], labels=labels_of(model)[rows], **of_all).loss
            (loss if of_all else loss / accumulate).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p not in own], clip)
            torch.nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
    return net


def difference(net: Any, other: Any) -> float:
    values, others = net.state_dict(), other.state_dict()
    assert values.keys() == others.keys()
    return max((value.double() - others[name].double()).abs().max().item() for name, value in values.items())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-2, weight_decay=0.0)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "exit": ({}, {}, {}),
    "accumulated": ({"synthesizer": "linear"}, {"gradient_accumulation_steps": 2}, {"accumulate": 2}),
    "clipped": ({"synthesizer": "linear"}, {"max_grad_norm": 0.05}, {"clip": 0.05}),
    "bf16": ({}, {"bf16": True}, {"bf16": True}),
    "stepping": ({"step": "segment", "optimizer": adamw}, {}, {}),
}


@pytest.mark.parametrize("model", [bert, gpt])
@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_as_by_hand(name: str, model: Any, tmp_path: Path) -> None:
    options, arguments, of_loop = CASES[name]
    net = made(model, **options)
    other = copy.deepcopy(net)
    trainer(net, model, tmp_path, **arguments).train()
    if "accumulate" in of_loop:
        other.dni.scale_with(accumulate=of_loop["accumulate"])
    assert difference(net, by_hand(other, model, **of_loop)) == 0


def test_exits_in_a_loss_that_divides_by_all_accumulated_labels(tmp_path: Path) -> None:
    net = made(gpt)
    nets = net, copy.deepcopy(net)
    trainer(nets[0], gpt, tmp_path, gradient_accumulation_steps=2).train()
    nets[1].dni.scale_with(accumulate=1)
    assert difference(nets[0], by_hand(nets[1], gpt, accumulate=2)) == 0


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


# With two processes, a model that divides by all labels has in each a part of the loss.
IN_TWO: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "mean": (bert, {}, {}),
    "mean, clipped": (bert, {"synthesizer": "linear"}, {"max_grad_norm": 0.1}),
    "part of a sum": (gpt, {}, {}),
    "part of a sum, accumulated": (gpt, {}, {"gradient_accumulation_steps": 2}),
    "part of a sum, stepping": (
        gpt,
        {"step": "segment", "optimizer": sgd, "accumulate": 2},
        {"gradient_accumulation_steps": 2},
    ),
}


def trained(name: str, folder: Path, rows: int) -> dict[str, torch.Tensor]:
    model, options, arguments = IN_TWO[name]
    net = made(model, verify=False, **options)
    trainer(net, model, folder, per_device_train_batch_size=rows, optim="sgd", **arguments).train()
    return {key: value.clone() for key, value in net.state_dict().items()}


def process(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0")
    with tempfile.TemporaryDirectory() as folder:
        return {name: trained(name, Path(folder), 4) for name in IN_TWO}


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    found = in_processes(process, tmp_path)
    for name in IN_TWO:
        for key, value in trained(name, tmp_path, 8).items():
            assert torch.equal(found[0][name][key], found[1][name][key]), (name, key)
            torch.testing.assert_close(found[0][name][key], value, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")


def test_labels_are_the_context(tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": 2, "synthesizer": "linear"}
    nets = made(bert, **options), made(bert, context_from="labels", **options)
    for net in nets:
        trainer(net, bert, tmp_path).train()
    assert difference(*nets) == 0


@pytest.mark.parametrize("model", [bert, gpt])
def test_a_run_goes_on_bit_for_bit(model: Any, tmp_path: Path) -> None:
    whole = made(model, synthesizer="linear")
    resumed = copy.deepcopy(whole)
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer(whole, model, tmp_path, **saving).train()
    trainer(resumed, model, tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert difference(whole, resumed) == 0
    others = made(model, synthesizer="mlp")
    before = copy.deepcopy(others)
    for message in ("a net with other cuts or other synthesizers", r"checkpoint-2 has no dni\.pt"):
        with pytest.raises(DniFxError, match=message):
            trainer(others, model, tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert difference(others, before) == 0
        (tmp_path / "checkpoint-2" / "dni.pt").unlink(missing_ok=True)


@pytest.mark.parametrize("model", [bert, gpt])
def test_the_best_model_is_loaded_evaluated_and_saved(model: Any, tmp_path: Path) -> None:
    net = made(model)
    best = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    runs = trainer(net, model, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", **best)
    runs.train()
    found = runs.evaluate()["eval_loss"]
    assert found == pytest.approx(min(one["eval_loss"] for one in runs.state.log_history if "eval_loss" in one))
    assert runs.predict(runs.eval_dataset).metrics["test_loss"] == pytest.approx(found)
    runs.save_model(str(tmp_path / "saved"))
    again = type(net.dni_original).from_pretrained(tmp_path / "saved")
    kept = net.dni_original.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_grad_norm": 1.0}, 'max_grad_norm: with step="segment"'),
        ({"gradient_accumulation_steps": 2}, "the net was made with accumulate=1"),
    ],
)
def test_what_segments_that_step_cannot_do(arguments: Any, message: str, tmp_path: Path) -> None:
    net = made(bert, step="segment", optimizer=adamw)
    with pytest.raises(DniFxError, match=message):
        trainer(net, bert, tmp_path, **arguments)


def test_the_plain_trainer_trains_a_net(tmp_path: Path) -> None:
    """It sets `use_cache` in the configuration, which the graph of an encoder does not depend on."""
    nets = made(bert), made(bert)
    runs = trainer(nets[0], bert, tmp_path)
    plain = transformers.Trainer(nets[1], runs.args, train_dataset=runs.train_dataset)
    plain._get_train_sampler = runs._get_train_sampler
    for one in (runs, plain):
        one.train()
    assert difference(*nets) == 0 and not nets[1].accepts_loss_kwargs


def test_a_model_that_is_not_rewritten(tmp_path: Path) -> None:
    with pytest.raises(DniFxError, match=r"expected what dni_fx\.transform returned"):
        trainer(bert(), bert, tmp_path)


def mean_of_all(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def test_exits_in_a_given_loss_beside_a_loss_of_the_trainers(tmp_path: Path) -> None:
    """One batch of 16, or 4 of 4: the gradients are the same."""
    net = dni_fx.transform(gpt(), example_kwargs={"input_ids": WORDS[:4]}, cuts=2, loss=mean_of_all, verify=False)
    rows = [{"input_ids": words, "labels": words} for words in WORDS]
    found = []
    for size, steps in ((16, 1), (4, 4)):
        one = copy.deepcopy(net)
        runs = trainer(
            one, gpt, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1
        )
        kwargs = {"train_dataset": rows, "compute_loss_func": mean_of_all}
        InOrder(one, runs.args, optimizers=(torch.optim.SGD(one.parameters(), 1.0), None), **kwargs).train()
        found.append({name: p.detach() for name, p in one.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name, rtol=1e-4, atol=1e-5)


def test_arguments_by_position(tmp_path: Path) -> None:
    net = made(gpt)
    arguments = trainer(net, gpt, tmp_path).args
    assert InOrder(net, arguments, None, [{}]).train_dataset == [{}]
    with pytest.raises(DniFxError, match="no model_init"):
        InOrder(args=arguments, model_init=gpt)


def test_an_epoch_that_ends_between_two_steps_of_the_segments(tmp_path: Path) -> None:
    net = made(bert, step="segment", optimizer=adamw, accumulate=3)
    with pytest.warns(UserWarning, match="the last step of an epoch has 2 batches"):
        trainer(net, bert, tmp_path, gradient_accumulation_steps=3).train()
