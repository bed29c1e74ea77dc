"""Timer: measure how long the stages of a run take, and end training after a given time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_info
from fulmen.states import RunningStage
from fulmen.trigger import duration_seconds
from fulmen.types import CaselessEnum

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["Interval", "Timer"]


class Interval(CaselessEnum):
    """When the time is looked at."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measures the time spent in training, validation, sanity check and test; ends training when it took too long.

    ``Trainer(max_time=...)`` is this callback with ``interval="step"``. Training time before a resume counts.

    Args:
        duration: The longest time training may take: "DD:HH:MM:SS", a timedelta, or a dict of its arguments such as
            ``{"hours": 2}``. None only measures.
        interval: "step" looks at the time after each training batch, "epoch" after each training epoch.
        verbose: Whether to report that the time is over.

    Raises:
        MisconfigurationException: ``duration`` or ``interval`` is none of the above.
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | None = None,
        interval: str = Interval.step,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if interval not in list(Interval):
            raise MisconfigurationException(
                f"`Timer(interval={interval!r})`: expected 'step' (look at the time after each training batch) or"
                " 'epoch' (after each training epoch).",
                subject=interval,
            )
        self._duration = duration_seconds(duration)
        self._interval = Interval(interval)
        self._verbose = verbose
        self._start: dict[RunningStage, float] = {}
        self._end: dict[RunningStage, float] = {}
        self._before_resume = 0.0
        self._began: float | None = None
        self._is_over = False

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """The time is looked at in one hook only, and not at all without a duration."""
        if hook == "on_train_batch_end":
            return self._duration is not None and self._interval == Interval.step
        if hook == "on_train_epoch_end":
            return self._duration is not None and self._interval == Interval.epoch
        return True

    def start_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When ``stage`` ("train", "validate", "sanity_check", "test") last began, in seconds of ``time.monotonic``."""
        return self._start.get(RunningStage(stage))

    def end_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When ``stage`` last ended, in seconds of ``time.monotonic``; None while it runs."""
        return self._end.get(RunningStage(stage))

    def time_elapsed(self, stage: str = RunningStage.TRAINING) -> float:
        """Seconds that ``stage`` has taken so far; for training with the time before a resume."""
        start, end = self.start_time(stage), self.end_time(stage)
        before = self._before_resume if RunningStage(stage) is RunningStage.TRAINING else 0.0
        if start is None:
            return before
        return before + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Seconds left of ``duration``, negative when it is over; None without one."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends a resumed run that has no time left before it begins."""
        self._is_over = False
        self._began = None
        self._start.pop(RunningStage.TRAINING, None)
        self._check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins."""
        self._begin(RunningStage.TRAINING)
        if self._duration is not None:
            self._began = trainer.clock.now(fresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training has ended."""
        self._finish(RunningStage.TRAINING)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sanity check begins."""
        self._begin(RunningStage.SANITY_CHECKING)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sanity check has ended."""
        self._finish(RunningStage.SANITY_CHECKING)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        if not trainer.sanity_checking:
            self._begin(RunningStage.VALIDATING)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation has ended."""
        if not trainer.sanity_checking:
            self._finish(RunningStage.VALIDATING)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test begins."""
        self._begin(RunningStage.TESTING)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test has ended."""
        self._finish(RunningStage.TESTING)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends training if the time is over."""
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends training if the time is over."""
        self._check(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Seconds by stage."""
        return {"time_elapsed": {stage.value: self.time_elapsed(stage) for stage in RunningStage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave: the training time before a resume."""
        self._before_resume = state_dict.get("time_elapsed", {}).get(RunningStage.TRAINING.value, 0.0)

    def _begin(self, stage: RunningStage) -> None:
        self._start[stage] = time.monotonic()
        self._end.pop(stage, None)

    def _finish(self, stage: RunningStage) -> None:
        self._end[stage] = time.monotonic()

    def _check(self, trainer: Trainer) -> None:
        if self._duration is None:
            return
        passed = 0.0 if self._began is None else trainer.clock.now() - self._began
        if self._before_resume + passed < self._duration:
            return
        trainer.should_stop = True
        if self._verbose and not self._is_over:
            elapsed = timedelta(seconds=int(self.time_elapsed()))
            rank_zero_info(f"Time limit reached. Elapsed time is {elapsed}. Signaling Trainer to stop.")
        self._is_over = True
