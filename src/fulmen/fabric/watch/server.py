"""The server of the watch, in a thread of rank 0: hears from all, tells all.

Lines of JSON go both ways. Nothing that is received is run or unpickled, and who does not know the token is not heard.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from fulmen.fabric.watch.leaving import Meeting
from fulmen.fabric.watch.report import compose, death_of, parting
from fulmen.fabric.watch.stand import Stand

GATHER_SECONDS = 2.0
"""How long is waited for where the others stand."""

_DEATH_SECONDS = 1.0
"""How long is waited for a reason after a connection broke: an exception, or the exit code of a child."""


class Server:
    """Hears where everybody stands, and tells everybody when a process has failed.

    Args:
        world_size: Number of processes.
        token: What a process has to say first.
        host: Where to listen; "" for everywhere.
    """

    def __init__(self, world_size: int, token: str, host: str = "") -> None:
        self.world_size, self.token = world_size, token
        self._socket = socket.create_server((host, 0), backlog=world_size)
        self.port: int = self._socket.getsockname()[1]
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._stands: dict[int, Stand] = {}
        self._seen: dict[int, dict[str, str]] = {}
        self._left: set[int] = set()
        self._begun: set[int] = set()
        self._exit_codes: dict[int, int] = {}
        self._failure: dict[str, Any] | None = None
        self._meeting = Meeting(world_size, self._tell)
        threading.Thread(target=self._accept, name="fulmen-watch-server", daemon=True).start()

    def child_ended(self, rank: int, exit_code: int) -> None:
        """A launcher saw a process end."""
        self._exit_codes[rank] = exit_code
        if exit_code:
            self._fail(death_of(rank, exit_code))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        rank: int | None = None
        with suppress(OSError, ValueError, KeyError), connection, connection.makefile("r", encoding="utf-8") as lines:
            hello = json.loads(next(lines, "{}"))
            if hello.get("token") != self.token:
                return
            rank = int(hello["rank"])
            with self._lock:
                self._connections[rank] = connection
            for line in lines:
                self._take(rank, json.loads(line))
        if rank is not None:
            self._lost(rank)

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._fail(message["failed"])
        elif "leave" in message or "begun" in message:
            self._meeting.take(rank, message)
        elif message.get("begins"):
            self._begin(rank)
        elif message.get("left"):
            self._left.add(rank)
            self._look_for_parting()
        elif "seen" in message:
            self._seen[rank] = message["seen"]
        elif message.get("stands") is None:
            self._stands.pop(rank, None)
        else:
            self._stands[rank] = Stand(**message["stands"])
            self._look_for_parting()

    def _begin(self, rank: int) -> None:
        """All have caught what failed, and run again."""
        with self._lock:
            self._begun.add(rank)
            if self._begun >= self._connections.keys():
                self._failure = None
                self._begun.clear()
                self._seen.clear()
                self._stands.clear()

    def _lost(self, rank: int) -> None:
        with self._lock:
            self._connections.pop(rank, None)
        if rank in self._left:
            return
        time.sleep(_DEATH_SECONDS)
        self._fail(death_of(rank, self._exit_codes.get(rank)))

    def _look_for_parting(self) -> None:
        """Whether every process stands still, in a collective that not all of them take part in."""
        stands = dict(self._stands)
        if len(stands.keys() | self._left) < self.world_size or not stands.keys() - self._left:
            return
        waiting = [stand for rank, stand in stands.items() if rank not in self._left]
        if not all(stand.collective for stand in waiting):
            return
        if self._left or len({stand.meeting for stand in waiting}) > 1:
            self._fail(parting(stands, self._left))

    def _fail(self, failure: dict[str, Any]) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        self._tell({"failure": failure})
        threading.Thread(target=self._conclude, daemon=True).start()

    def _conclude(self) -> None:
        """Waits for where the others stand, and sends the report to all."""
        assert self._failure is not None
        until = time.monotonic() + GATHER_SECONDS
        while time.monotonic() < until and not self._connections.keys() <= self._seen.keys():
            time.sleep(0.02)
        self._tell({"report": compose(self._failure, dict(self._seen), self.world_size)})

    def _tell(self, message: dict[str, Any]) -> None:
        line = (json.dumps(message) + "\n").encode()
        with self._lock:
            for connection in self._connections.values():
                with suppress(OSError):
                    connection.sendall(line)
