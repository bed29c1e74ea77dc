"""How all processes come to leave a run after the same batch when one of them is asked to end (a signal).

Nothing is exchanged before that. Who is asked to end says so through the watch; a thread of each process answers how
many batches it has begun, and from the answers follows the first batch that nobody has passed yet. The main threads
meet in no collective for this, so that it does not matter where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

AGREE_SECONDS = 10.0
"""How long a process waits for the others before it leaves by itself."""

Message = dict[str, Any]


class Leaving:
    """One process's part.

    Args:
        send: Sends a message to the server of the watch.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._agreed = threading.Event()
        self._after = 0
        self._on_ask: Callable[[str], None] | None = None
        self._begun: Callable[[], int] | None = None

    def begin(self, on_ask: Callable[[str], None], begun: Callable[[], int]) -> None:
        """A run begins.

        Args:
            on_ask: Called in another thread when any process asks all to leave, with its reason.
            begun: How many batches this process has begun.
        """
        self._agreed.clear()
        self._on_ask, self._begun = on_ask, begun

    def end(self) -> None:
        """The run is over: nobody has to be asked here any more."""
        self._on_ask = self._begun = None

    def ask(self, reason: str) -> None:
        """Ask all processes to leave."""
        self._send({"leave": reason})

    def agree(self, reason: str) -> int | None:
        """Ask all processes to leave, and wait until it is known when.

        Returns:
            After how many batches; None if the others do not answer.
        """
        if not self._agreed.is_set():
            self.ask(reason)
        return self._after if self._agreed.wait(AGREE_SECONDS) else None

    def take(self, message: Message) -> None:
        """A message of the server has come."""
        if "leave_after" in message:
            if not self._agreed.is_set():  # the first answer counts, which is the same on all
                self._after = message["leave_after"]
                self._agreed.set()
        elif "leave" not in message:
            return
        elif self._on_ask is not None and self._begun is not None:
            # told first, asked then: the main thread begins one more batch at most without having seen it
            self._on_ask(message["leave"])
            self._send({"begun": self._begun()})
        else:
            self._send({"begun": -1})


class Meeting:
    """The server's part: collects the answers.

    Args:
        world_size: Number of processes.
        tell: Sends a message to all of them.
    """

    def __init__(self, world_size: int, tell: Callable[[Message], None]) -> None:
        self._world_size, self._tell = world_size, tell
        self._lock = threading.Lock()
        self._begun: dict[int, int] | None = None

    def take(self, rank: int, message: Message) -> None:
        """A message of a process has come."""
        if "leave" in message:
            with self._lock:
                if self._begun is not None:  # others were asked, too, and have said so already
                    return
                self._begun = {}
            self._tell({"leave": message["leave"]})
            return
        with self._lock:
            if self._begun is None or "begun" not in message:
                return
            self._begun[rank] = message["begun"]
            if len(self._begun) < self._world_size:
                return
            after, self._begun = max(self._begun.values()) + 1, None
        self._tell({"leave_after": after})
