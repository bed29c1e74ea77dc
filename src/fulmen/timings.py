"""Timings: where the time of a run goes, by category."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

CATEGORIES = ("setup", "data", "forward_backward", "optimizer", "logging", "checkpoint", "validation", "other")

_CATEGORY_OF = {
    "run_training": "other",
    "train_fetch": "data",
    "training_step": "forward_backward",
    "zero_grad": "forward_backward",
    "backward": "forward_backward",
    "optimizer_step": "optimizer",
    "log_metrics": "logging",
    "save_checkpoint": "checkpoint",
    "run_validation": "validation",
}


class Timings:
    """A stopwatch with one hand for each category; time spent inside an inner category is not counted in the outer one.

    What comes before the training loop is "setup", what in the loop is none of the named parts is "other".

    Args:
        trainer: The run to measure; the seconds are found in its ``timings``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.seconds = trainer.timings = dict.fromkeys(CATEGORIES, 0.0)
        self._running: list[str] = []
        self._since = time.perf_counter()

    def turn(self, category: str) -> None:
        """From here on time counts for ``category``, until ``back``."""
        self._charge()
        self._running.append(category)

    def back(self) -> None:
        """Time counts again for what was running before."""
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1] if self._running else "setup"] += now - self._since
        self._since = now

    def wrap(self, kind: str, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted for the category of this kind of part."""
        category = _CATEGORY_OF.get(kind)
        if category is None:
            return function

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.turn(category)
            try:
                return function(*arguments, **keywords)
            finally:
                self.back()

        return call

    def install(self) -> Callable[[], None]:
        """Starts measuring; returns a function that stops."""
        self._since = time.perf_counter()
        remove = self.trainer.instruments.add(self)

        def stop() -> None:
            self._charge()
            remove()

        return stop
