"""A callback for the Trainer of Lightning, whose automatic optimization zeroes gradients after the forward pass."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.runtime import DecoupledModule, rewritten_in

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules or "lightning.pytorch" in sys.modules:
    import lightning.pytorch as pl
else:
    import pytorch_lightning as pl  # the same library by its older name

__all__ = ["DecoupledCallback"]

_REPLACED = ("training_step", "clip_gradients", "optimizer_zero_grad")


class DecoupledCallback(pl.Callback):  # type: ignore[misc]  # mypy does not read Lightning
    """Makes automatic optimization right for a LightningModule that holds rewritten nets.

    - Gradients are zeroed before the training step. Lightning zeroes them after it, when `unlock="backward"` has
      accumulated the gradients of the lower segments already.
    - Predictions follow `accumulate_grad_batches`, and the GradScaler of 16-bit precision.
    - A training step that returns None trains nothing; gradients that have accumulated before it are dropped, too.
    - `gradient_clip_val` clips the gradients of the model and those of the synthesizers apart: the norm of the latter
      is not the model's.

    With manual optimization it does nothing.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before `fit`: replace methods of the module, until `teardown`; the module may make its nets only later.

        Raises:
            DniFxError: If the Trainer is to clip or to accumulate what segments that step by themselves do not have.
        """
        _restore(pl_module)  # an earlier fit may have ended in an error
        if stage == "fit" and rewritten_in(pl_module):
            _prepare(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After `setup` and `configure_model` of the module: replace its methods, if that is not done.

        Raises:
            DniFxError: If the module holds no rewritten net.
        """
        if pl_module.automatic_optimization and not rewritten_in(pl_module):
            raise DniFxError(f"{type(pl_module).__name__} holds no net that dni_fx.transform has returned")
        _prepare(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first batch: warn if the segments that step by themselves will step at other batches."""
        every, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        steps = any(net.dni.optimizer is not None for net in rewritten_in(pl_module))
        if steps and pl_module.automatic_optimization and batches != float("inf") and batches % every:
            warnings.warn(
                f"{batches} batches are no multiple of accumulate_grad_batches={every}: with "
                f'step="segment" the segments step after each {every}, also over the end of an epoch, where Lightning '
                "steps: give a multiple",
                stacklevel=2,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After `fit`: the module has its own methods again."""
        _restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """After an error: the module has its own methods again."""
        _restore(pl_module)


def _restore(module: Any) -> None:
    for name in _REPLACED:
        vars(module).pop(name, None)


def _prepare(trainer: pl.Trainer, module: Any) -> None:
    """Replace methods of a module, in this one object, once."""
    if not module.automatic_optimization or "optimizer_zero_grad" in vars(module):
        return
    nets = rewritten_in(module)
    for net in nets:
        _check_segment_steps(net, trainer)
        _follow(net, trainer)  # an earlier fit may have had another GradScaler
    module.training_step = _after_zero_grad(trainer, nets, module.training_step, module.optimizer_zero_grad)
    module.clip_gradients = functools.partial(_clip_apart, nets, module.clip_gradients)
    module.optimizer_zero_grad = _zero_nothing


def _after_zero_grad(
    trainer: pl.Trainer, nets: list[DecoupledModule], step: Callable[..., Any], zero_grad: Callable[..., None]
) -> Callable[..., Any]:
    """The training step, with `zero_grad` before it; an optimizer may run it several times, as LBFGS does."""

    @functools.wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        divisor, batch = trainer.accumulate_grad_batches, trainer.fit_loop.batch_idx
        for net in nets:
            if net.dni.accumulate != divisor:  # a scheduler may change it
                _follow(net, trainer)
        if batch % divisor == 0:
            for optimizer in trainer.optimizers:
                zero_grad(trainer.current_epoch, batch, optimizer)
        loss = step(*args, **kwargs)
        if loss is None:  # the batch is skipped, but the lower segments may have its gradients
            for optimizer in trainer.optimizers:
                zero_grad(trainer.current_epoch, batch, optimizer)
        return loss

    return training_step


def _follow(net: DecoupledModule, trainer: pl.Trainer) -> None:
    """Let predictions follow the factor of the Trainer's loss."""
    if net.dni.optimizer is None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        net.dni.scale_with(scaler, accumulate=trainer.accumulate_grad_batches)


def _zero_nothing(epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
    """Takes the place of `optimizer_zero_grad`, which Lightning calls after the training step."""


class _Part:
    """An optimizer as the plugins of Lightning see it, with some of its parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self.param_groups = [{"params": parameters}]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def _clip_apart(
    nets: list[DecoupledModule], clip: Callable[..., None], optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any
) -> None:
    """Clip the gradients of the synthesizers apart from all others, as `LightningModule.clip_gradients` does."""
    own = {parameter for net in nets for parameter in net.dni.parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for part in ([p for p in parameters if p not in own], [p for p in parameters if p in own]):
        clip(_Part(optimizer, part), *args, **kwargs)


def _check_segment_steps(net: DecoupledModule, trainer: pl.Trainer) -> None:
    """Raise a DniFxError if the segments of a net step by themselves, and the Trainer wants something else."""
    optimizer: Any = net.dni.optimizer
    if optimizer is None:
        return
    if trainer.gradient_clip_val:
        raise DniFxError(
            'gradient_clip_val: with step="segment" the segments have stepped, and freed their gradients, before '
            "Lightning clips them. Clip in the function that optimizer= is, by a hook on the optimizer that it makes"
        )
    if trainer.accumulate_grad_batches != optimizer.accumulate:
        raise DniFxError(
            f"the Trainer has accumulate_grad_batches={trainer.accumulate_grad_batches}, and the net was made with "
            f"accumulate={optimizer.accumulate}: give both the same number"
        )
