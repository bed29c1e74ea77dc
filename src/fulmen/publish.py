"""From the book to the loggers, and from the user to the screen: what is due, and how it gets there."""

from __future__ import annotations

import math
import time
from typing import Any

from fulmen.tree import to_scalars
from fulmen.trigger import Every
from fulmen.view import TrainerView


class Publisher(TrainerView):
    """The part of a Trainer that hands metrics to its loggers."""

    _log_decision: tuple[int, bool] = (-1, False)
    _logged_at: float = -math.inf

    def logs_step(self, stepped: int) -> bool:
        """Whether the metrics of this step are due at the loggers."""
        if not self._loggers or not self.fit_loop.updates:
            return False
        if self.log_every is not None:
            return self._log_every_due(self.log_every, stepped)
        every = self.log_every_n_steps
        return bool(every) and ((stepped + 1) % every == 0 or self.should_stop or bool(self.fast_dev_run))

    def logs_batch(self, batch_idx: int) -> bool:
        """Whether what belongs to this batch of an evaluation is due at the loggers: they count its own batches."""
        every = self.log_every_n_steps or (self.log_every and self.log_every.batches)
        if not self._loggers or not every:
            return False
        return (batch_idx + 1) % every == 0 or self.should_stop or bool(self.fast_dev_run)

    @property
    def logs_by_step(self) -> bool:
        """Whether there are loggers that anything is logged to by step."""
        return bool(self._loggers) and bool(self.log_every_n_steps or self.log_every)

    def _log_every_due(self, every: Every, stepped: int) -> bool:
        """Whether ``log_every`` has come round; asked again about the same step, the answer is the same."""
        if self._log_decision[0] != stepped:
            if every.epochs is not None:
                due = self.is_last_batch and every.due(self.current_epoch + 1)
            elif every.seconds is None:
                due = self.fit_loop.passed(every)
            else:
                due = time.monotonic() - self._logged_at >= every.seconds
                self._logged_at = time.monotonic() if due else self._logged_at
            self._log_decision = (stepped, due)
        return self._log_decision[1] or self.should_stop

    def watched_triggers(self) -> list[Every]:
        """The triggers in steps, batches, samples or epochs whose counts the loop has to keep."""
        found = (self.val_check_every, self.max_count, self.log_every)
        return [every for every in found if every is not None and every.seconds is None]

    @property
    def logs_evaluation(self) -> bool:
        """Whether step metrics of evaluation go to loggers."""
        return bool(self._loggers) and not self.sanity_checking

    def log_step(self, phase: str, step: int) -> None:
        """Sends what this batch logged by step to the loggers."""
        metrics = self.book.step_metrics(phase)
        if metrics:
            self.log_metrics(metrics, step, with_epoch=phase == "train")

    def log_epoch(self, entries: list[Any], step: int) -> None:
        """Sends the reduced metrics of an epoch to the loggers."""
        metrics = {entry.epoch_key: entry.result for entry in entries if entry.logger}
        if metrics and self.logs_evaluation:
            self.log_metrics(metrics, step)

    def log_metrics(self, metrics: dict[str, Any], step: int, with_epoch: bool = True) -> None:
        """Sends metrics to all loggers: one copy from the device, whatever their number.

        Args:
            metrics: Tensors or numbers by name; one named "step" is used as x instead of ``step``.
            step: The x value.
            with_epoch: Whether "epoch" is added.
        """
        scalars: dict[str, Any] = to_scalars(metrics)
        if "step" in scalars:
            step = int(scalars.pop("step"))
        elif with_epoch:
            scalars.setdefault("epoch", self.current_epoch)
        for logger in self._loggers:
            logger.log_metrics(metrics=scalars, step=step)
            logger.save()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints on one process of each machine, above the progress bar if there is one."""
        if self.local_rank != 0:
            return
        bar = self.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)
