"""BatchSizeFinder: a search for the largest batch size at the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.states import TrainerFn
from fulmen.tuner.batch_size_scaling import MODES, check_search, check_task, find_batch_size
from fulmen.tuner.probe import Task

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["BatchSizeFinder"]


class BatchSizeFinder(Callback):
    """Finds the largest batch size that fits into memory when fit, validate, test or predict starts, and runs with it.

    The arguments are those of ``Tuner.scale_batch_size``. To look for one at other times, override ``on_fit_start`` and
    call ``scale_batch_size`` in another hook, for instance ``on_train_epoch_start``.

    Args:
        mode: "power" doubles the size until it no longer fits; "binsearch" then goes on by halving the interval.
        steps_per_trial: Steps that a size has to run: in fit of the optimizer, else batches.
        init_val: The first size.
        max_trials: So many sizes are doubled or halved at most, not counting those of the halved intervals.
        batch_arg_name: The attribute of the module or datamodule, or the hyperparameter, that is the batch size.
        margin: With "binsearch" the fraction by which the size is lowered in the end, so that memory is left.
        max_val: The largest size to try.

    Attributes:
        optimal_batch_size: What was found; None before.

    Raises:
        ValueError: An unknown mode.
        AssertionError: A margin outside of [0, 1).
    """

    SUPPORTED_MODES = MODES
    order: ClassVar[int] = -1

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        check_search(mode, steps_per_trial, init_val, max_trials, margin, max_val)
        self._mode = mode
        self._steps_per_trial = steps_per_trial
        self._init_val = init_val
        self._max_trials = max_trials
        self._batch_arg_name = batch_arg_name
        self._margin = margin
        self._max_val = max_val
        self.optimal_batch_size: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Refuses a run in which the batch size cannot be changed."""
        if trainer.fast_dev_run:
            return
        if trainer.world_size > 1:
            raise MisconfigurationException(
                f"`BatchSizeFinder` works with one process; this trainer has {trainer.world_size}. Find the size with"
                " `Trainer(devices=1)`: it is the size on each device."
            )
        check_task(Task.of_run(trainer, pl_module), self._batch_arg_name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the size of a fit."""
        self.scale_batch_size(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the size of ``Trainer.validate``; the validation inside fit has the size of the fit."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the size of a test."""
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the size of a prediction."""
        self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for a size from where the run is, and lets it go on with new loaders of that size.

        Args:
            trainer: The run.
            pl_module: Its module.
        """
        starting = trainer.book.page.hook == "on_fit_start"
        self.optimal_batch_size = find_batch_size(
            Task.of_run(trainer, pl_module),
            self._mode,
            self._steps_per_trial,
            self._init_val,
            self._max_trials,
            self._batch_arg_name,
            self._margin,
            self._max_val,
        )
        if self.optimal_batch_size is not None:
            _reload(trainer, starting)


def _reload(trainer: Trainer, starting: bool) -> None:
    """Puts loaders with the new size in the place of those that the run has already."""
    if trainer.state.fn == TrainerFn.VALIDATING or trainer.state.fn == TrainerFn.TESTING:
        loop = trainer._evaluation_loop()
        loop.drop_data()
        loop.load_data()
    elif trainer.state.fn == TrainerFn.PREDICTING:
        predict = trainer.predict_loop
        predict.drop_data()
        predict.feeds, predict.several = trainer.data.evaluation_feeds("predict", True)
    elif trainer.fit_loop.feed is not None:
        trainer.fit_loop.drop_data()
        trainer.fit_loop.val_loop.drop_data()
        trainer.fit_loop.load_data()
        if starting:  # `configure_optimizers` asked how long the run will be
            trainer.strategy.setup_optimizers(trainer)
