"""A Trainer of transformers for rewritten nets."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from dni_fx.errors import DniFxError
from dni_fx.runtime import rewritten

__all__ = ["DecoupledTrainer"]

_STATE = "dni.pt"  # in the folder of a checkpoint: the state of the synthesizers


class DecoupledTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """A `transformers.Trainer`, with the same arguments but `model_init`, for what `dni_fx.transform` has returned.

    - Checkpoints and `save_model` hold the model as `save_pretrained` writes it, and beside it the synthesizers.
    - The labels of a batch are the `dni_context` of a net that takes one.
    - Predictions follow `gradient_accumulation_steps`, and the GradScaler of `fp16`.
    - `max_grad_norm` clips the gradients of the model and those of the synthesizers apart: the norm of the latter is
      not the model's.
    - With `step="segment"` the optimizer is the net's own.

    Raises:
        DniFxError: If the model is no rewritten net, or its segments step by themselves and cannot do what `args` say.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(Trainer.__init__).bind(self, *args, **kwargs).arguments
        if given.get("model_init") is not None:
            raise DniFxError("a DecoupledTrainer takes a model that dni_fx.transform has returned, and no model_init")
        self._net = rewritten(given.get("model"))
        config: Any = getattr(self._net, "config", None)
        use_cache = getattr(config, "use_cache", None)
        own: Any = self._net.dni.optimizer
        optimizer, scheduler = given.get("optimizers", (None, None))
        given["optimizers"] = (own if optimizer is None else optimizer, scheduler)
        super().__init__(**{name: value for name, value in given.items() if name != "self"})
        if use_cache is not None:
            config.use_cache = use_cache  # the Trainer has changed it, and the graph holds for the value before
        self._followed = self.args.gradient_accumulation_steps, 1  # the divisor and the factor of the loss
        if own is None:
            self._net.dni.scale_with(self.accelerator.scaler, accumulate=self._followed[0])
        else:
            _check_segment_steps(own.accumulate, self.args)
        self.accelerator.clip_grad_norm_ = self._clipping(self.accelerator.clip_grad_norm_)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A training step, as of the Trainer; predictions follow the factor of its loss."""
        self._warn_of_short_step()
        # A model that gets `num_items_in_batch` divides its own loss, in which exits may end, too.
        divides_itself = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        exits = self._net.dni.exits.values()
        in_own_loss = bool(exits) and all(exit.plan.loss for exit in exits)
        divisor, factor = self.current_gradient_accumulation_steps, 1
        if divides_itself and in_own_loss:
            # `compute_loss` multiplies this loss, which is divided by the labels of all processes, by their number.
            divisor, factor = 1, self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        if self._followed != (divisor, factor):
            scaler = getattr(self._net.dni.optimizer, "scaler", self.accelerator.scaler)
            self._net.dni.scale_with(scaler, accumulate=divisor, factor=factor)
            self._followed = divisor, factor
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _warn_of_short_step(self) -> None:
        """Warn if the Trainer steps after fewer batches than segments that step by themselves."""
        own: Any = self._net.dni.optimizer
        batches = self.current_gradient_accumulation_steps
        if own is not None and batches != own.accumulate:
            warnings.warn(
                f'the last step of an epoch has {batches} batches: with step="segment" the segments step after each '
                f"{own.accumulate}, also over the end of an epoch: give a multiple",
                stacklevel=2,
            )

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, as of the Trainer; the labels are the `dni_context`, too."""
        takes = self._net.dni_takes_context() and self._net.dni_context_source is None
        if takes and self._net.training and "dni_context" not in inputs and "labels" in inputs:
            inputs = {**inputs, "dni_context": inputs["labels"]}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._original_model():
            super()._save(output_dir)
        if self.args.should_save:
            state = {name: value.detach().cpu() for name, value in self._net.dni.state_dict().items()}
            torch.save(state, os.path.join(output_dir or self.args.output_dir, _STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._load_synthesizers(resume_from_checkpoint)  # first: the model keeps its weights if this fails
        with self._original_model():
            super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_synthesizers(self.state.best_model_checkpoint)
        with self._original_model():
            super()._load_best_model()

    @contextmanager
    def _original_model(self) -> Iterator[None]:
        """Let the Trainer save and load the model that was rewritten, whose parameters are the net's."""
        self.model = self._net.dni_share_with_original()
        try:
            yield
        finally:
            self.model = self._net

    def _load_synthesizers(self, folder: str) -> None:
        path = os.path.join(folder, _STATE)
        if not os.path.isfile(path):
            raise DniFxError(f"{folder} has no {_STATE}: it is no checkpoint of a DecoupledTrainer")
        state, own = torch.load(path, map_location="cpu", weights_only=True), self._net.dni.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise DniFxError(f"{path} holds the synthesizers of a net with other cuts or other synthesizers")
        self._net.dni.load_state_dict(state)

    def _clipping(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """The function of the accelerator that clips gradients, for the model and the synthesizers apart."""

        def clip_apart(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2) -> Any:
            every, own = list(parameters), set(self._net.dni.parameters())
            norm = clip([p for p in every if p not in own], max_norm, norm_type)
            nn.utils.clip_grad_norm_([p for p in every if p in own], max_norm, norm_type)
            return norm

        return clip_apart


def _check_segment_steps(accumulate: int, args: Any) -> None:
    """Raise a DniFxError if the arguments ask for what segments that step by themselves cannot do."""
    if args.max_grad_norm:
        raise DniFxError(
            'max_grad_norm: with step="segment" the segments have stepped, and freed their gradients, before the '
            "Trainer clips them: give max_grad_norm=0, and clip in the function that optimizer= is"
        )
    if args.gradient_accumulation_steps != accumulate:
        raise DniFxError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}, and the net was made with accumulate="
            f"{accumulate}: give both the same number"
        )
