"""The base of progress bars: what to show, without a word on how."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.ranks import WarningCache

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ProgressBar", "get_standard_metrics"]


class ProgressBar(Callback):
    """Base class of progress bars: override hooks to draw one, and `enable` and `disable` to switch it.

    Only rank 0 shows progress: `setup` calls `disable` on the other ranks.

    Example::

        class Dots(ProgressBar):
            def __init__(self):
                super().__init__()
                self.on = True

            def disable(self):
                self.on = False

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if self.on:
                    print(".", end="", flush=True)
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._current_eval_dataloader_idx: int | None = None
        self._warnings = WarningCache()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remembers the trainer; switches the bar off on ranks above 0."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs.

        Raises:
            TypeError: Before `setup`.
        """
        if self._trainer is None:
            raise TypeError(
                f"The trainer of this {type(self).__name__} is not set yet; it is from the `setup` hook on. "
                "An override of `setup` has to call `super().setup(trainer, pl_module, stage)`."
            )
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown; True unless a subclass knows better."""
        return True

    @property
    def is_disabled(self) -> bool:
        """Whether progress is not shown."""
        return not self.is_enabled

    def disable(self) -> None:
        """Show nothing any more."""
        raise NotImplementedError(f"{type(self).__name__} has to define `disable`, which switches it off.")

    def enable(self) -> None:
        """Show progress again."""
        raise NotImplementedError(f"{type(self).__name__} has to define `enable`, which switches it on.")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without damage to the bar; arguments as for the builtin."""
        print(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- what is shown

    @property
    def sanity_check_description(self) -> str:
        """Title of the sanity check."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """Title of training."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """Title of validation."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """Title of testing."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """Title of prediction."""
        return "Predicting"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the current epoch, or those until `max_steps` if that comes first; inf if unknown."""
        trainer = self.trainer
        total: int | float = trainer.num_training_batches
        if trainer.max_steps == -1:
            return total
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return min(total, trainer.fit_loop.batch_idx + 1 + left)

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Batches of the validation (or sanity check) loader that is being run; inf if unknown."""
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return self._of_current_dataloader(batches)

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Batches of the test loader that is being run; inf if unknown."""
        return self._of_current_dataloader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the prediction loader that is being run; inf if unknown."""
        return self._of_current_dataloader(self.trainer.num_predict_batches)

    @property
    def total_val_batches(self) -> int | float:
        """Batches of all validation loaders if this epoch is validated, else 0; inf if unknown."""
        trainer = self.trainer
        every = trainer.check_val_every_n_epoch
        if every is not None and (trainer.current_epoch + 1) % every:
            return 0
        return _sum(trainer.num_val_batches)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What to show beside the bar: the version number of the loggers, then what was logged with `prog_bar=True`.

        Override it to show more, or less. It copies from the device, so it is called only when the bar is redrawn.

        Returns:
            Values by name, in the order in which they are shown.
        """
        metrics: dict[str, int | str | float | dict[str, float]] = dict(get_standard_metrics(trainer))
        logged = trainer.progress_bar_metrics
        for name in metrics.keys() & logged.keys():
            self._warnings.warn(
                f"The progress bar shows {name!r} by itself, and `self.log({name!r}, ..., prog_bar=True)` replaces it."
                " Log yours under another name to see both."
            )
        metrics.update(logged)
        return metrics

    # ---------------------------------------------------------------------------------------------- dataloaders

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether `dataloader_idx` differs from that of the last call; remembers it."""
        changed = dataloader_idx != self._current_eval_dataloader_idx
        self._current_eval_dataloader_idx = dataloader_idx
        return changed

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget which dataloader was run last."""
        self._current_eval_dataloader_idx = None

    def _of_current_dataloader(self, batches: list[int | float] | int | float) -> int | float:
        if isinstance(batches, (int, float)):
            return batches
        return batches[self._current_eval_dataloader_idx or 0] if batches else 0


def _sum(batches: list[int | float] | int | float) -> int | float:
    return batches if isinstance(batches, (int, float)) else sum(batches)


def get_standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """What a progress bar shows by itself: "v_num", the version of the loggers, if they have one."""
    versions = [logger.version for logger in trainer.loggers if logger.version not in (None, "")]
    if not versions:
        return {}
    if len(versions) == 1 and isinstance(versions[0], int):
        return {"v_num": versions[0]}
    # Long version names, such as a run's identifier, are told apart by their ends.
    return {"v_num": "_".join(str(version) for version in versions)[-4:]}


def known_total(total: int | float) -> int | None:
    """A total as a count, None if it is unknown (infinite)."""
    return None if math.isinf(total) else int(total)
