"""The clock by which a run decides: of several processes all read the same time after the same batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

SECONDS_BETWEEN_MEETINGS = 0.5
"""How old a reading may be on several processes, so that fast batches do not wait for an exchange each."""


class Clock:
    """Reads ``time.monotonic``, on several processes that of rank 0.

    Args:
        trainer: Whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.start_over()

    def start_over(self) -> None:
        """A run begins."""
        self._now = 0.0
        self._met_at = self._meet_at = -1

    def now(self, fresh: bool = False) -> float:
        """The time in seconds. All processes must ask at the same points of training.

        Args:
            fresh: Whether it may not be older than this moment.
        """
        if self.trainer.world_size == 1:
            return time.monotonic()
        batch = self.trainer.fit_loop.count_begun()
        if fresh or batch >= self._meet_at:
            self._meet(batch)
        return self._now

    def _meet(self, batch: int) -> None:
        """Takes rank 0's reading, and its estimate of the batch after which it will be too old."""
        now, batches = time.monotonic(), max(batch - self._met_at, 1)
        passed = max(now - self._now, 1e-9)
        ahead = int(min(batches * SECONDS_BETWEEN_MEETINGS / passed, 2 * batches))
        self._now, self._meet_at = self.trainer.strategy.broadcast((now, batch + max(ahead, 1)))
        self._met_at = batch
