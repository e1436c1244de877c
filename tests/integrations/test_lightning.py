"""Lightning's Trainer trains a rewritten net to the same weights as a loop by hand."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import dni_fx
from dni_fx import DniFxError, Training
from dni_fx.integrations.lightning import DecoupledCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and loggers

X, Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
EXIT = {"synthesizer": "exit", "loss": "cross_entropy"}
STEPPING = {"step": "segment", "optimizer": lambda parameters: torch.optim.Adam(parameters, 1e-2)}


def made(dropout: float = 0.1, **options: Any) -> Any:
    torch.manual_seed(1)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
    return dni_fx.transform(nn.Sequential(*layers), X[:4], cuts=["1"], **options)


def loss_of(net: Any, batch: Sequence[Tensor]) -> Tensor:
    x, y = batch
    context = {"dni_context": y} if net.dni_takes_context() else {}
    return nn.functional.cross_entropy(net(x, **context), y)


class Module(lightning.LightningModule):
    """Holds a rewritten net."""

    def __init__(self, net: Any, optimizer: Any = torch.optim.Adam) -> None:
        super().__init__()
        self.net, self.made = net, optimizer

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        return self.net.dni.optimizer or self.made(self.parameters(), 1e-2)


def trainer(*callbacks: Any, **options: Any) -> lightning.Trainer:
    """With our callback; 4 batches of 16 an epoch."""
    quiet: Any = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    quiet["enable_checkpointing"] = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    return lightning.Trainer(
        accelerator="cpu", callbacks=[DecoupledCallback(), *callbacks], **quiet, **{"max_epochs": 2} | options
    )


def data() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), 16)


def by_hand(net: Any, accumulate: int = 1, clip: float = 0.0, bf16: bool = False, epochs: int = 2) -> Any:
    torch.manual_seed(5)
    net.train()
    optimizer = net.dni.optimizer or torch.optim.Adam(net.parameters(), 1e-2)
    own = set(net.dni.parameters())
    for _ in range(epochs):
        for step, batch in enumerate(data()):
            if step % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(net, batch) / accumulate
            loss.backward()
            if step % accumulate == accumulate - 1:
                if clip:
                    nn.utils.clip_grad_norm_([p for p in net.parameters() if p not in own], clip)
                    nn.utils.clip_grad_norm_(own, clip)
                optimizer.step()
    return net


def difference(net: Any, other: Any) -> float:
    values, others = net.state_dict(), other.state_dict()
    assert values.keys() == others.keys()
    return max((value.double() - others[name].double()).abs().max().item() for name, value in values.items())


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "unlock none": ({"unlock": "none"}, {}, {}),
    "exit": (EXIT, {}, {}),
    "accumulated": ({"accumulate": 2}, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "clipped": ({}, {"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "bf16": ({}, {"precision": "bf16-mixed"}, {"bf16": True}),
    "stepping": (STEPPING, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_as_by_hand(name: str) -> None:
    options, of_trainer, of_loop = CASES[name]
    net, other = made(**options), made(**options)
    torch.manual_seed(5)
    module = Module(net)
    trainer(**of_trainer).fit(module, data())
    assert difference(net, by_hand(other, **of_loop)) == 0
    assert not {"training_step", "optimizer_zero_grad", "clip_gradients"} & vars(module).keys()


def test_accumulate_need_not_be_given() -> None:
    nets = made(), made(accumulate=2)
    for net in nets:
        torch.manual_seed(5)
        trainer(accumulate_grad_batches=2).fit(Module(net), data())
    assert difference(*nets) == 0


def test_an_optimizer_that_runs_the_step_several_times() -> None:
    """Each run zeroes the gradients before, as `optimizer.step(closure)` does by hand."""

    def lbfgs(parameters: Any, rate: float) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(list(parameters), rate, max_iter=3)

    nets = made(0.0), made(0.0)
    trainer(max_epochs=1).fit(Module(nets[0], lbfgs), data())
    optimizer = lbfgs(nets[1].train().parameters(), 1e-2)
    for batch in data():

        def closure(batch: Sequence[Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(nets[1], batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert difference(*nets) == 0


@pytest.mark.parametrize("options", [{"training": Training(warmup=3)}, STEPPING], ids=["loop", "segment"])
def test_a_run_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    whole, begun, resumed = made(0.0, **options), made(0.0, **options), made(0.0, **options)
    trainer(max_epochs=4).fit(Module(whole), data())
    trainer(ModelCheckpoint(tmp_path, save_last=True)).fit(Module(begun), data())
    trainer(max_epochs=4).fit(Module(resumed), data(), ckpt_path=tmp_path / "last.ckpt")
    assert difference(whole, resumed) == 0 < difference(whole, begun)


class Late(Module):
    """Makes its net where Lightning says that large models are made."""

    def __init__(self) -> None:
        super().__init__(None)

    def configure_model(self) -> None:
        self.net = self.net or made(0.0)


def test_a_net_that_is_made_late() -> None:
    module = Late()
    trainer().fit(module, data())
    assert difference(module.net, by_hand(made(0.0))) == 0


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """`on_train_epoch_start` is not called then, and predictions follow the accumulation nevertheless."""
    begun, resumed = made(0.0), made(0.0)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer(saving, accumulate_grad_batches=2).fit(Module(begun), data())
    trainer(accumulate_grad_batches=2).fit(Module(resumed), data(), ckpt_path=tmp_path / "step=1.ckpt")
    assert resumed.dni.accumulate == 2


class Failing(Callback):
    def on_train_batch_end(self, *arguments: Any) -> None:
        if arguments[-1] == 0:  # in the middle of an accumulation
            raise RuntimeError("stopped")


def test_after_an_error_the_module_has_its_own_methods() -> None:
    module = Module(made(0.0))
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(Failing(), accumulate_grad_batches=2).fit(module, data())
    assert not {"training_step", "optimizer_zero_grad", "clip_gradients"} & vars(module).keys()


def test_a_scheduler_of_accumulation_in_any_order() -> None:
    nets = made(0.0), made(0.0)
    schedule = GradientAccumulationScheduler({0: 2, 1: 1})
    trainer(schedule).fit(Module(nets[0]), data())
    before = trainer()
    before.callbacks.insert(0, GradientAccumulationScheduler({0: 2, 1: 1}))
    before.fit(Module(nets[1]), data())
    assert difference(*nets) == 0 and nets[0].dni.accumulate == 1


class Skipping(Module):
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return loss if batch_idx < 2 else None


def test_a_skipped_step_trains_nothing() -> None:
    def sgd(parameters: Any, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate)

    nets = made(0.0, **EXIT), made(0.0, **EXIT)
    trainer(max_epochs=1).fit(Skipping(nets[0], sgd), data())
    trainer(max_epochs=1, limit_train_batches=2).fit(Module(nets[1], sgd), data())
    parameters = dict(nets[1].named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in nets[0].named_parameters())


def test_the_finder_of_learning_rates() -> None:
    """It runs the loop without callbacks."""
    module = Module(made(0.0))
    module.lr = 1e-3
    found = Tuner(trainer()).lr_find(module, data(), num_training=8)
    assert found is not None and len(found.results["loss"]) > 4


def test_manual_optimization_stays_as_it_is() -> None:
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            optimizer.step()

    net = made()
    torch.manual_seed(5)
    trainer().fit(Manual(net), data())
    assert difference(net, by_hand(made())) == 0


def test_without_the_callback_the_error_names_it() -> None:
    plain = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(dni_fx.DniFxError, match=r"callbacks=\[dni_fx.integrations.lightning.DecoupledCallback"):
        plain.fit(Module(made()), data())


@pytest.mark.parametrize(
    ("options", "of_trainer", "message"),
    [
        (STEPPING, {"gradient_clip_val": 1.0}, 'gradient_clip_val: with step="segment"'),
        (STEPPING, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2, and the net was made with accumulate=1"),
    ],
)
def test_what_segments_that_step_cannot_do(options: Any, of_trainer: Any, message: str) -> None:
    with pytest.raises(DniFxError, match=message):
        trainer(**of_trainer).fit(Module(made(**options)), data())


def test_an_epoch_that_ends_between_two_steps_of_the_segments() -> None:
    net = made(**STEPPING, accumulate=3)
    with pytest.warns(UserWarning, match="4 batches are no multiple of accumulate_grad_batches=3"):
        trainer(accumulate_grad_batches=3).fit(Module(net), data())


class Plain(Module):
    def configure_optimizers(self) -> Any:
        return None


def test_a_module_without_a_net() -> None:
    with pytest.raises(DniFxError, match=r"Plain holds no net that dni_fx\.transform has returned"):
        trainer().fit(Plain(None), data())


class Halves(Sampler[int]):
    """Of each batch of 16, the first half in one process, and the second in the other."""

    def __iter__(self) -> Iterator[int]:
        begin = 8 * int(os.environ.get("LOCAL_RANK", 0))
        return iter([16 * batch + begin + row for batch in range(4) for row in range(8)])

    def __len__(self) -> int:
        return 32


def main(path: str) -> None:
    """Train with two processes; this file runs as a script, once in each."""
    net = made(0.0, **EXIT)
    halves = DataLoader(TensorDataset(X, Y), 8, sampler=Halves())
    of_trainer: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    runs = trainer(devices=2, strategy="ddp", use_distributed_sampler=False, **of_trainer)
    runs.fit(Module(net), halves)
    if runs.is_global_zero:
        torch.save(net.state_dict(), path)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    net = made(0.0, accumulate=2, **EXIT)
    alone, together = by_hand(net, accumulate=2, clip=0.1).state_dict(), torch.load(path)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, msg=key, rtol=0, atol=1e-6)


if __name__ == "__main__":
    main(*sys.argv[1:])
