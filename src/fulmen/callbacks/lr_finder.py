"""LearningRateFinder: a learning-rate range test at the start of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fulmen.callback import Callback
from fulmen.tuner.lr_finder import MODES, check_mode, find_learning_rate
from fulmen.tuner.probe import Task

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer
    from fulmen.tuner.lr_finder import _LRFinder

__all__ = ["LearningRateFinder"]


class LearningRateFinder(Callback):
    """Finds a learning rate when fit starts, and trains with it.

    To look for one at other times, override ``on_fit_start`` and call ``lr_find`` in another hook.

    Args:
        min_lr: The first rate.
        max_lr: The last rate.
        num_training_steps: Number of steps.
        mode: How the rate grows: "exponential" or "linear".
        early_stop_threshold: The test ends when the smoothed loss is so many times its least value; None: never.
        update_attr: Whether the suggested rate is set and trained with.
        attr_name: The attribute that is the learning rate; by default ``lr``, else ``learning_rate``.

    Attributes:
        optimal_lr: What was found, with ``suggestion()`` and ``plot()``; None before.

    Raises:
        ValueError: An unknown mode.

    Example:
        >>> class AtMilestones(LearningRateFinder):
        ...     def on_fit_start(self, trainer, pl_module):
        ...         pass
        ...     def on_train_epoch_start(self, trainer, pl_module):
        ...         if trainer.current_epoch in (0, 5, 10):
        ...             self.lr_find(trainer, pl_module)
    """

    SUPPORTED_MODES = MODES
    order: ClassVar[int] = -1

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        check_mode(mode)
        self._min_lr = min_lr
        self._max_lr = max_lr
        self._num_training_steps = num_training_steps
        self._mode = mode
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self.optimal_lr: _LRFinder | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the test."""
        self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the test from where the run is, and lets it go on with the rate that was found.

        Args:
            trainer: The run.
            pl_module: Its module.
        """
        starting = trainer.book.page.hook == "on_fit_start"
        self.optimal_lr = find_learning_rate(
            Task.of_run(trainer, pl_module),
            self._min_lr,
            self._max_lr,
            self._num_training_steps,
            self._mode,
            self._early_stop_threshold,
            self._update_attr,
            self._attr_name,
        )
        rate = self.optimal_lr.suggestion() if self.optimal_lr is not None and self._update_attr else None
        if rate is not None:
            if starting:
                # no step was taken yet: schedulers start from the rate, too, if the optimizer is made with it
                trainer.strategy.setup_optimizers(trainer)
            for optimizer in trainer.optimizers:
                _use(rate, optimizer)


def _use(rate: float, optimizer: Any) -> None:
    """Gives the rate to all groups, unless the optimizer was made with it."""
    groups = optimizer.param_groups
    if not any(rate in (group["lr"], group.get("initial_lr")) for group in groups):
        for group in groups:
            group["lr"] = rate
