"""From the book to the loggers: what is due, and how it gets there."""

from __future__ import annotations

from typing import Any

from fulmen.tree import to_scalars
from fulmen.view import TrainerView


class Publisher(TrainerView):
    """The part of a Trainer that hands metrics to its loggers."""

    def logs_step(self, stepped: int) -> bool:
        """Whether the metrics of this step are due at the loggers."""
        if not self._loggers:
            return False
        every = self.log_every_n_steps
        return bool(every) and ((stepped + 1) % every == 0 or self.should_stop or bool(self.fast_dev_run))

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
