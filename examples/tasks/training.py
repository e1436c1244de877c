"""Training window by window, in three ways, and how far a run has come."""

import argparse
import csv
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generators
import models
import torch
from curricula import Task
from generators import Batch
from torch import Tensor
from torch.utils import _pytree as pytree

import dni_fx
from dni_fx import DniFxError

METHODS = ("backprop", "truncated", "dni")
OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}
CHECKPOINT, CURVES = "checkpoint.pt", "curves.csv"
_EXAMPLE_ROWS = 3
# What may differ when a run goes on: it changes nothing that was done before.
_FREE = {"steps", "resume", "out", "check_freq", "generalise"}


class Run:
    """A model that learns a task, and its curves so far.

    The methods differ in what they do with the state at the end of a window: "backprop" hands it on with its graph,
    and goes backward at the end of the sequence; "truncated" cuts it off; "dni" lets dni-fx do so, which predicts what
    is lost thereby.

    Args:
        task: Is advanced as it is learned.
        options: Of the command line.
    """

    def __init__(self, task: Task, options: argparse.Namespace) -> None:
        self.task, self.options = task, options
        torch.manual_seed(options.seed)
        self.model = models.build(options, *task.sizes)
        self.optimizer = OPTIMIZERS[options.optim](self.model.parameters(), lr=options.lr)
        dni = options.method == "dni"
        # Not trained with, the rewritten net is there for checkpoints.
        self.net = dni_fx.transform(
            self.model,
            (torch.rand(_EXAMPLE_ROWS, options.window, task.sizes[0]), self.model.start(_EXAMPLE_ROWS)),
            state=True,
            synthesizer=options.synthesizer if dni else "zero",
            optimizer=self.optimizer,
            frontend="fx",
            verify=dni,
        )
        self.trained = self.net if dni else self.model
        torch.manual_seed(options.seed)  # the same sequences, whatever the model and the method
        self.done = 0  # steps: sequences, a batch at once
        self.rows: list[dict[str, float]] = []  # of the curves
        self.recent: list[tuple[float, float]] = []  # losses and shares that are right, since the last row

    def step(self) -> float:
        """Train on one batch of sequences; its loss, in the task's unit.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        self.trained.train()
        batch = self.task.batch(self.options.batch_size)
        state, total, right = self.model.start(self.options.batch_size), torch.zeros(()), 0.0
        whole = self.options.method == "backprop"
        self.optimizer.zero_grad()
        for window in self._windows(batch):
            outputs, state = self.trained(window.inputs, state)
            loss, share = self._score(outputs, window, batch)
            right += share
            if not whole:  # where nothing counts the loss is zero, but what is predicted goes backward with it
                self._update(loss)
                loss, state = loss.detach(), pytree.tree_map(torch.detach, state)
            total = total + loss
        if whole:
            self._update(total)
        self.done += 1
        self._record(total.item(), right)
        return total.item()

    def generalise(self) -> Iterator[dict[str, float]]:
        """Losses on longer sequences, batch by batch."""
        self.model.eval()
        for _ in range(self.options.generalise):
            batch = self.task.long_batch(self.options.batch_size)
            state, loss, right = self.model.start(self.options.batch_size), 0.0, 0.0
            with torch.no_grad():
                for window in self._windows(batch):
                    outputs, state = self.model(window.inputs, state)
                    part, share = self._score(outputs, window, batch)
                    loss, right = loss + part.item(), right + share
            yield {"steps": batch.mask.numel(), "loss": loss, "right": right}

    def save(self) -> None:
        """Write checkpoint and curves; whenever it is interrupted, there is a whole one of each."""
        folder = self.options.out
        dni_fx.save_checkpoint(
            folder / CHECKPOINT,
            self.net,
            optimizer=self.optimizer,
            task=self.task,
            done=self.done,
            rows=self.rows,
            recent=self.recent,
            options=self._fixed_options(),
        )
        write_csv(folder / CURVES, self.rows)

    def load(self) -> None:
        """Go on where `save` left off.

        Raises:
            DniFxError: If there is no such run.
        """
        path = self.options.out / CHECKPOINT
        rest = dni_fx.load_checkpoint(path, self.net, optimizer=self.optimizer, task=self.task)
        for name, value in self._fixed_options().items():
            if rest["options"].get(name) != value:
                asked = f"--{name.replace('_', '-')}"
                raise DniFxError(f"{path} is of a run with {asked} {rest['options'].get(name)}, not {value}")
        self.done, self.rows, self.recent = rest["done"], rest["rows"], rest["recent"]

    def _windows(self, batch: Batch) -> Iterator[Batch]:
        """In one piece, where nothing is cut and the model takes any length."""
        if self.model.steps is not None:
            return generators.windows(generators.padded(batch, self.model.steps), self.model.steps)
        whole = self.options.method == "backprop"
        return generators.windows(batch, batch.mask.numel() if whole else self.options.window)

    def _score(self, outputs: Tensor, window: Batch, batch: Batch) -> tuple[Tensor, float]:
        """A window's part of the batch's mean loss, and of the share that is right."""
        rows = len(outputs)
        loss = (self.task.losses(outputs, window.targets) * window.mask).sum() / (rows * batch.mask.sum())
        right = self.task.right(outputs.detach(), window.targets) * window.answer
        return loss, (right.sum() / (rows * batch.answer.sum())).item()

    def _update(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} in step {self.done + 1}")
        loss.backward()
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _record(self, loss: float, right: float) -> None:
        self.recent.append((loss, right))
        level = self.task.level
        self.task.advance(self.done, loss)
        if self.done % self.options.summarize_freq:
            return
        losses, rights = zip(*self.recent, strict=True)
        row = {"step": self.done, "loss": sum(losses) / len(losses), "right": sum(rights) / len(rights), **level}
        if self.options.method == "dni":  # how well the synthesizer predicts
            row["cosine"] = self.net.dni.metrics().get("time0", {}).get("cosine", math.nan)
        self.rows.append(row)
        self.recent = []

    def _fixed_options(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.options).items() if name not in _FREE}


def write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Replace the file once the new one is there whole."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    aside = path.with_name(f".{path.name}")
    aside.write_text(text.getvalue())
    os.replace(aside, path)
