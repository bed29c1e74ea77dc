"""Looking at a thread from outside, again and again: does it stand still, and does it compute meanwhile?"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from fulmen.fabric.watch.stand import main_frame

LOOK_SECONDS = 0.5
"""How often is looked where a thread stands."""

STILL_LOOKS = 7
"""After so many looks that found it at one instruction a thread is said to stand still. They are counted, not the
time: a process that was stopped for a while has not stood still, and neither has one that got no processor."""

_IDLE_SECONDS = 0.02
"""Less processor time than this, over all these looks, is no computing."""


class Look:
    """What was seen of a thread.

    Args:
        thread_id: Which thread.
    """

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        self._before: Any = None
        self._seconds: deque[float] = deque(maxlen=STILL_LOOKS)

    def again(self, place: str) -> None:
        """Look once more.

        Args:
            place: Where the run is: the same instruction at another place is progress.
        """
        frame = main_frame(self.thread_id)
        now = None if frame is None else (id(frame), frame.f_lasti, place)
        if now != self._before:
            self._before = now
            self._seconds.clear()
        self._seconds.append(_processor_seconds(self.thread_id))

    @property
    def is_still(self) -> bool:
        """Whether it stands still."""
        return self._before is not None and len(self._seconds) == STILL_LOOKS

    @property
    def is_idle(self) -> bool:
        """Whether it has stood still and not computed."""
        return self.is_still and self._seconds[-1] - self._seconds[0] < _IDLE_SECONDS


def _processor_seconds(thread_id: int) -> float:
    """Processor time of the main thread; of the whole process where it is about another, which may end any time."""
    if thread_id != threading.main_thread().ident or not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time()
    return time.clock_gettime(time.pthread_getcpuclockid(thread_id))
