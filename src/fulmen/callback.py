"""Callback: code that listens to a run without being part of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer


class Callback:
    """Base class of callbacks. Override the hooks you need; what is not overridden costs nothing.

    Every hook gets the trainer and the module first. The hooks are written below in the order in which they run.
    During a run, ``self.log`` and ``self.log_dict`` of a callback are those of the module.

    Attributes:
        order: Place among the callbacks: negative before, positive after the plain ones (0). Checkpoint callbacks
            have 1.
        after_module: Names of the hooks which this callback gets after the module instead of before it.
    """

    order: ClassVar[int] = 0
    after_module: ClassVar[frozenset[str]] = frozenset()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; must differ between two callbacks of one run."""
        return type(self).__qualname__

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Whether ``hook``, which this callback overrides, has anything to do in this run.

        Asked once, when a run starts. Return False for a hook that is switched off, and the loop will not know of it.
        """
        return True

    def _generate_state_key(self, **arguments: Any) -> str:
        """A state key that tells instances apart by the given arguments."""
        return f"{type(self).__qualname__}{arguments!r}"

    # ------------------------------------------------------------------------------------------------ the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict begins; ``stage`` says which."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called last of all when fit, validate, test or predict has ended well."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the model is on its device and the optimizers exist, before anything is restored into them."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit has ended."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when an exception (also KeyboardInterrupt) ends the run."""

    # ------------------------------------------------------------------------------------------------ sanity check

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the few validation batches that are run before training."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the few validation batches that are run before training."""

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first training epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last training epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a training epoch begins."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a training epoch has ended, after its validation."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called before a batch is trained on."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called after the forward pass, before the gradients are set to zero."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before the backward pass; ``loss`` is divided by the accumulation, and scaled under 16-mixed."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the backward pass, before gradients are unscaled."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before the optimizer steps, with gradients unscaled and not yet clipped."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after a batch; ``outputs["loss"]`` is detached and divided by the accumulation."""

    # ------------------------------------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a validation begins."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a validation has ended and its metrics are known."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first batch of a validation."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last batch of a validation; what is logged here still counts for it."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before a validation batch."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after a validation batch; ``outputs`` is what ``validation_step`` returned."""

    # ------------------------------------------------------------------------------------------------ test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a test begins."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a test has ended and its metrics are known."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last test batch; what is logged here still counts for the test."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before a test batch."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after a test batch; ``outputs`` is what ``test_step`` returned."""

    # ------------------------------------------------------------------------------------------------ prediction

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a prediction run begins."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a prediction run has ended."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first prediction batch."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last prediction batch."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before a prediction batch."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after a prediction batch; ``outputs`` is what ``predict_step`` returned."""

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What of this callback belongs into a checkpoint. An empty dict means nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""

    def weights_to_save(self, trainer: Trainer, pl_module: LightningModule, weights: dict[str, Any]) -> dict[str, Any]:
        """The module's state as it goes into a checkpoint, be it one of the weights only.

        Args:
            trainer: The run.
            pl_module: The module.
            weights: Its state; may be changed.

        Returns:
            What is saved as "state_dict".
        """
        return weights

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called with the finished checkpoint before it is written; may add to it or change it."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called with a checkpoint that is being restored, before ``load_state_dict``."""
