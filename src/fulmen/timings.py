"""Timings: where the time of a run goes. Measured by swapping bound functions; nothing is asked when nobody"
" measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

CATEGORIES = ("setup", "data", "forward_backward", "optimizer", "logging", "checkpoint", "validation", "other")


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

    def timed(self, category: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted for ``category``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.turn(category)
            try:
                return function(*args, **kwargs)
            finally:
                self.back()

        return call

    def batches(self, start: Callable[[int], Iterator[Any]]) -> Callable[[int], Iterator[Any]]:
        """The feed's ``start``, with the time until each batch counted for "data"."""

        def timed_start(epoch: int) -> Iterator[Any]:
            iterator = self.timed("data", start)(epoch)
            fetch = self.timed("data", lambda: next(iterator, _END))
            return iter(fetch, _END)

        return timed_start

    def install(self) -> Callable[[], None]:
        """Starts measuring; returns a function that stops."""
        trainer, fit = self.trainer, self.trainer.fit_loop
        self._since = time.perf_counter()
        swapped: list[tuple[Any, str]] = []

        def swap(owner: Any, name: str, function: Callable[..., Any]) -> None:
            setattr(owner, name, function)
            swapped.append((owner, name))

        swap(trainer, "log_metrics", self.timed("logging", trainer.log_metrics))
        swap(trainer, "save_checkpoint", self.timed("checkpoint", trainer.save_checkpoint))
        swap(fit, "run", self.timed("other", fit.run))
        swap(fit, "validate", self.timed("validation", fit.validate))
        swap(fit, "bind_step", self._bind_step(fit.bind_step))
        swap(trainer.data, "feed", self._feed(trainer.data.feed))

        def undo() -> None:
            self._charge()
            for owner, name in swapped:
                owner.__dict__.pop(name, None)

        return undo

    def _bind_step(self, bind: Callable[[], Any]) -> Callable[[], Any]:
        def bind_timed() -> Any:
            step = bind()
            if hasattr(step, "gradient"):
                step.gradient = self.timed("forward_backward", step.gradient)
                step.update = self.timed("optimizer", step.update)
            else:
                step.training_step = self.timed("forward_backward", step.training_step)
            return step

        return bind_timed

    def _feed(self, make: Callable[[str], Any]) -> Callable[[str], Any]:
        def make_timed(stage: str) -> Any:
            feed = make(stage)
            feed.start = self.batches(feed.start)
            return feed

        return make_timed


_END: Any = object()
