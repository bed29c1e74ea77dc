"""What bars that are drawn have in common: switches, and when an evaluation begins and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.callbacks.progress.progress_bar import ProgressBar
from fulmen.errors import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["DrawnBar"]


class DrawnBar(ProgressBar):
    """A progress bar that is drawn every so many batches. A subclass defines what begins, counts and stops.

    Args:
        refresh_rate: Number of batches between two drawings; 0 switches the bar off.
        leave: Whether the bar of each epoch stays on the screen.

    Raises:
        MisconfigurationException: `refresh_rate` is negative.
    """

    def __init__(self, refresh_rate: int, leave: bool) -> None:
        if refresh_rate < 0:
            raise MisconfigurationException(
                f"`{type(self).__name__}(refresh_rate={refresh_rate})`: expected a number of batches, or 0 for no bar."
            )
        super().__init__()
        self._refresh_rate = refresh_rate
        self._leave = leave
        self._enabled = True

    # ---------------------------------------------------------------------------------------------- switches

    @property
    def refresh_rate(self) -> int:
        """Number of batches between two drawings."""
        return self._refresh_rate

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown."""
        return self._enabled and self._refresh_rate > 0

    def enable(self) -> None:
        """Show progress, from the next epoch, validation, test or prediction on."""
        self._enabled = True
        if self._trainer is not None:
            self._trainer.recompile_hooks()

    def disable(self) -> None:
        """Show nothing any more; a bar on the screen stays as it is."""
        self._enabled = False
        self._stop()

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """When the bar is off, the loop does not call it at all."""
        return hook == "setup" or (self.is_enabled and trainer.is_global_zero)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the bars as they stand; what follows begins on a new line."""
        self._stop()

    # ---------------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An evaluation begins."""
        self._begin_evaluation(trainer, 0)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch, and draws when it is due; with its first batch another loader begins."""
        if dataloader_idx != self._current_eval_dataloader_idx:
            self._begin_evaluation(trainer, dataloader_idx)
        self._count(batch_idx)

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _evaluated(self, trainer: Trainer) -> tuple[str, list[int | float] | int | float, int | float]:
        """The title of the evaluation that runs, the batches of all its loaders, and those of the current one."""
        if trainer.testing:
            return self.test_description, trainer.num_test_batches, self.total_test_batches_current_dataloader
        if trainer.predicting:
            return self.predict_description, trainer.num_predict_batches, self.total_predict_batches_current_dataloader
        title = self.sanity_check_description if trainer.sanity_checking else self.validation_description
        return title, trainer.num_val_batches, self.total_val_batches_current_dataloader

    # ---------------------------------------------------------------------------------------------- for subclasses

    def _begin_evaluation(self, trainer: Trainer, dataloader_idx: int) -> None:
        """A loader of validation, test or prediction begins."""
        raise NotImplementedError

    def _count(self, batch_idx: int) -> None:
        """A batch of it is done."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Nothing is drawn from here on until something begins."""
        raise NotImplementedError
