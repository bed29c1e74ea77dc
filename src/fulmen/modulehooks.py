"""The hooks of a LightningModule, as documented methods that do nothing, in the order in which a run calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from fulmen.callback import Callback
    from fulmen.optim import LightningOptimizer
    from fulmen.trainer import Trainer


class ModuleHooks:
    """What a LightningModule may override. Overridden hooks are found once per run; the others are never called."""

    if TYPE_CHECKING:
        trainer: Trainer

        zero_grad: Callable[..., None]
        clip_gradients: Callable[..., None]

    # ------------------------------------------------------------------------------------------------ set-up

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Callbacks that belong to this module; they replace the trainer's of the same type."""
        return []

    def configure_model(self) -> None:
        """Creates (large) submodules, on the right device and with the right dtype; may be called more than once."""
        self.configure_sharded_model()

    def configure_sharded_model(self) -> None:
        """The former name of ``configure_model``; deprecated."""

    def configure_optimizers(self) -> Any:
        """Returns the optimizer, and the schedulers if there are any.

        One of: an optimizer; a list of optimizers; ``([optimizers], [schedulers])``; a dictionary with ``"optimizer"``
        and ``"lr_scheduler"`` (a scheduler, or a dictionary with the fields of ``fulmen.optim.LRSchedulerConfig``); a
        list of such dictionaries; None to train without.
        """

    def on_fit_start(self) -> None:
        """Called when the module is on its device and the optimizers exist, before anything is restored into them."""

    def on_fit_end(self) -> None:
        """Called when fit has ended."""

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Called before the first training epoch."""

    def on_train_epoch_start(self) -> None:
        """Called when a training epoch begins."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before a batch is trained on; returning -1 skips the rest of the epoch."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss of one batch: ``training_step(self, batch, batch_idx)``.

        Returns:
            The loss (a tensor with one element that has a gradient), or a dictionary with it under ``"loss"``, or None
            to skip the batch. In manual optimisation anything of these is only passed on to the hooks.
        """
        raise NotImplementedError(f"`{type(self).__name__}` has no `training_step`.")

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called after the forward pass, before the gradients are set to zero."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Sets the gradients to zero."""
        optimizer.zero_grad()

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before the backward pass; ``loss`` is divided by the accumulation, and scaled under 16-mixed."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes the gradients."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def on_after_backward(self) -> None:
        """Called after the backward pass, before gradients are unscaled."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called before the optimizer steps, with gradients unscaled and not yet clipped."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients as the Trainer's arguments say; override to clip in another way."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps the optimizer; ``optimizer_closure`` does forward, zero_grad and backward and must be called once."""
        optimizer.step(closure=optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Steps a scheduler; ``metric`` is the value it monitors, None if it monitors none."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after a batch; ``outputs["loss"]`` is detached and divided by the accumulation."""

    def on_train_epoch_end(self) -> None:
        """Called when a training epoch has ended, after its validation; what is logged here counts for the epoch."""

    def on_train_end(self) -> None:
        """Called after the last training epoch."""

    # ------------------------------------------------------------------------------------------------ validation

    def on_validation_model_zero_grad(self) -> None:
        """Called before a validation inside fit: frees the gradients' memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Called before a validation: puts the model into eval mode."""
        self.trainer.model.eval()

    def on_validation_model_train(self) -> None:
        """Called after a validation, if overridden; else every submodule gets back the mode it had."""
        self.trainer.model.train()

    def on_validation_start(self) -> None:
        """Called when a validation begins."""

    def on_validation_epoch_start(self) -> None:
        """Called before the first batch of a validation."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a validation batch."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch: ``validation_step(self, batch, batch_idx[, dataloader_idx])``."""
        raise NotImplementedError(f"`{type(self).__name__}` has no `validation_step`.")

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a validation batch."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last batch of a validation; what is logged here counts for it."""

    def on_validation_end(self) -> None:
        """Called when a validation has ended."""

    # ------------------------------------------------------------------------------------------------ test

    def on_test_model_eval(self) -> None:
        """Called before a test: puts the model into eval mode."""
        self.trainer.model.eval()

    def on_test_model_train(self) -> None:
        """Called after a test, if overridden; else every submodule gets back the mode it had."""
        self.trainer.model.train()

    def on_test_start(self) -> None:
        """Called when a test begins."""

    def on_test_epoch_start(self) -> None:
        """Called before the first test batch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a test batch."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch: ``test_step(self, batch, batch_idx[, dataloader_idx])``."""
        raise NotImplementedError(f"`{type(self).__name__}` has no `test_step`.")

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a test batch."""

    def on_test_epoch_end(self) -> None:
        """Called after the last test batch; what is logged here counts for the test."""

    def on_test_end(self) -> None:
        """Called when a test has ended."""

    # ------------------------------------------------------------------------------------------------ prediction

    def on_predict_model_eval(self) -> None:
        """Called before a prediction run: puts the model into eval mode."""
        self.trainer.model.eval()

    def on_predict_start(self) -> None:
        """Called when a prediction run begins."""

    def on_predict_epoch_start(self) -> None:
        """Called before the first prediction batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a prediction batch."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts one batch: ``predict_step(self, batch, batch_idx[, dataloader_idx])``; by default"
        " ``self(batch)``.
        """
        return self(args[0] if args else kwargs["batch"])  # type: ignore[operator]

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a prediction batch."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last prediction batch."""

    def on_predict_end(self) -> None:
        """Called when a prediction run has ended."""
