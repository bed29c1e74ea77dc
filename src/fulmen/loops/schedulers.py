"""When learning-rate schedulers step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.errors import MisconfigurationException
from fulmen.hooks import opened
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.optim import LRSchedulerConfig
    from fulmen.trainer import Trainer


class Schedulers:
    """The schedulers of a run by the moment at which they step; empty in manual optimisation.

    Attributes:
        by_batch: Whether any steps after a batch, be it the last of the epoch.
        on_plateau: Those that wait for a metric: they step after validation or after the epoch.
        steps: How often any scheduler has stepped.
    """

    def __init__(self, trainer: Trainer, configs: list[LRSchedulerConfig], steps: int = 0) -> None:
        self.trainer = trainer
        automatic = bool(configs) and trainer.lightning_module.automatic_optimization
        plain = [config for config in configs if automatic and not config.reduce_on_plateau]
        self.by_step = [config for config in plain if config.interval == "step"]
        self.by_epoch = [config for config in plain if config.interval == "epoch"]
        self.by_batch = bool(plain)
        self.on_plateau = [config for config in configs if automatic and config.reduce_on_plateau]
        self._step = (
            opened(trainer.book, "lr_scheduler_step", trainer.lightning_module.lr_scheduler_step) if configs else None
        )
        self.steps = steps

    def after_batch(self, index: int, closes: bool, is_last: bool) -> None:
        """Steps what steps with batch ``index``: by step if it closed a window, by epoch if it was the last."""
        if closes:
            for config in self.by_step:
                if (index + 1) % config.frequency == 0:
                    self.step(config)
        if is_last:
            for config in self.by_epoch:
                if (self.trainer.current_epoch + 1) % config.frequency == 0:
                    self.step(config)

    def after_validation(self, index: int, closes: bool) -> None:
        """Steps those on a plateau by step, when the validation due on the batch has been run."""
        for config in self.on_plateau:
            if closes and config.interval == "step" and (index + 1) % config.frequency == 0:
                self.step(config)

    def after_epoch(self, epoch: int) -> None:
        """Steps those on a plateau by epoch, after the epoch of that number."""
        for config in self.on_plateau:
            if config.interval == "epoch" and (epoch + 1) % config.frequency == 0:
                self.step(config)

    def step(self, config: LRSchedulerConfig) -> None:
        """Steps one scheduler, with its metric if it monitors one."""
        metric = None
        if config.reduce_on_plateau:
            metric = self._monitored(config)
            if metric is None:
                return
        assert self._step is not None
        self._step(config.scheduler, metric)
        self.steps += 1

    def _monitored(self, config: LRSchedulerConfig) -> Any:
        metrics = self.trainer.callback_metrics
        assert config.monitor is not None
        if config.monitor in metrics:
            return metrics[config.monitor]
        message = (
            f"`{type(config.scheduler).__name__}` monitors {config.monitor!r}, which was not logged. Logged so far:"
            f' {sorted(metrics)}. Log it (`self.log({config.monitor!r}, ...)`), or change the scheduler\'s "monitor".'
        )
        if self.trainer.fit_loop.metrics_unknown:
            message += " The checkpoint that this epoch goes on from holds no metrics; the scheduler is left as it is."
        elif config.strict:
            raise MisconfigurationException(message)
        rank_zero_warn(message, category=RuntimeWarning)
        return None
