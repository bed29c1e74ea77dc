"""The server of the watch, in threads of rank 0: hears from all, tells all.

Lines of JSON go both ways. Nothing that is received is run or unpickled, and who does not know the token is not heard.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from fulmen.fabric.watch.leaving import Meeting
from fulmen.fabric.watch.report import compose, death_of, parting
from fulmen.fabric.watch.stand import Stand

GATHER_SECONDS = 1.5
"""How long is waited for where the others stand."""

_DEATH_SECONDS = 1.0
"""How long is waited for a reason after a connection broke: an exception, or the exit code of a child."""

_ANSWER_SECONDS = 2.0
"""How long is waited for an answer; who is busy gives none."""

_HELLO_SECONDS = 10.0
_HELLO_BYTES = 1000


class Server:
    """Hears where everybody stands, and tells everybody when a process has failed.

    Args:
        world_size: Number of processes.
        token: What a process has to say first.
        is_reachable: Whether processes of other machines connect, too; else only those of this one can.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, world_size: int, token: str, is_reachable: bool = False) -> None:
        self.world_size, self.token = world_size, token
        self._socket = _listening(is_reachable)
        self.port: int = self._socket.getsockname()[1]
        self._lock = threading.RLock()
        self._connections: dict[int, socket.socket] = {}
        self._known: set[int] = set()
        self._runs: dict[int, int] = {}
        self._stands: dict[int, Stand] = {}
        self._seen: dict[int, dict[str, Any]] = {}
        self._left: set[int] = set()
        self._failed: set[int] = set()
        self._broken: set[int] = set()
        self._exit_codes: dict[int, int] = {}
        self._failure: dict[str, Any] | None = None
        self._meeting = Meeting(world_size, self._tell)
        self._is_common = False
        self._is_confirming = False
        self._question = 0
        self._answers: dict[int, Stand | None] = {}
        threading.Thread(target=self._accept, name="fulmen-watch-server", daemon=True).start()

    def others_are_here(self) -> bool:
        """Whether a process besides rank 0 has not left."""
        with self._lock:
            return bool(self._known - self._left - {0})

    def close_inherited(self) -> None:
        """In a process that was forked from this one: let go of what belongs to this one."""
        for inherited in [self._socket, *self._connections.values()]:
            close_inherited(inherited)

    # ------------------------------------------------------------------------------------------------ hearing

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), name="fulmen-watch-server", daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        rank: int | None = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(_HELLO_SECONDS)
            lines = connection.makefile("r", encoding="utf-8")
            hello = json.loads(lines.readline(_HELLO_BYTES))
            if not hmac.compare_digest(str(hello["token"]).encode(), self.token.encode()):
                connection.close()
                return
            connection.settimeout(None)
            keep_alive(connection)
            rank = int(hello["rank"])
            with self._lock:
                self._connections[rank] = connection
                self._known.add(rank)
            for line in lines:
                with self._lock:
                    self._take(rank, json.loads(line))
        with suppress(OSError):
            connection.close()
        if rank is not None:
            self._lost(rank)

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if "stands" in message:
            stand = None if message["stands"] is None else Stand.from_dict(message["stands"])
            if message.get("answers") == self._question:
                self._answers[rank] = stand
            self._note_stand(rank, stand)
        elif "failed" in message:
            self._failed.add(rank)
            self._fail(message["failed"])
            self._tell_if_common()
        elif "begins" in message:
            self._begin(rank, message["begins"])
        elif "seen" in message:
            self._seen[rank] = message["seen"]
        elif "broken" in message:
            self._broken.add(rank)
            self._look_for_the_lost()
        elif "ended" in message:
            self._note_end(message["ended"], message["exit_code"])
        elif "left" in message:
            self._left.add(rank)
            self._look_for_the_lost()
            self._look_for_parting()
        else:
            self._meeting.take(rank, message)

    def _note_stand(self, rank: int, stand: Stand | None) -> None:
        if stand is None:
            self._stands.pop(rank, None)
        else:
            self._stands[rank] = stand
            self._look_for_parting()

    def _note_end(self, rank: int, exit_code: int) -> None:
        self._exit_codes[rank] = exit_code
        if exit_code and rank not in self._failed:
            self._fail(death_of(rank, exit_code))

    def _begin(self, rank: int, run: int) -> None:
        """A process begins a run: it has caught what failed before."""
        self._runs[rank] = run
        self._failed.discard(rank)
        self._broken.discard(rank)
        self._stands.pop(rank, None)

    def _lost(self, rank: int) -> None:
        with self._lock:
            self._connections.pop(rank, None)
        if rank in self._left:
            return
        time.sleep(_DEATH_SECONDS)
        self._fail(death_of(rank, self._exit_codes.get(rank)))

    # ------------------------------------------------------------------------------------------------ parting

    def _look_for_the_lost(self) -> None:
        """Whether an exchange has broken because another process has left; which is heard first is chance."""
        if self._left and self._broken - self._left:
            self._fail(parting(self._stands, self._left))

    def _look_for_parting(self) -> None:
        """Whether all wait for each other in vain."""
        if not self._is_confirming and self._have_parted(self._stands):
            self._is_confirming = True
            threading.Thread(target=self._confirm, name="fulmen-watch-parting", daemon=True).start()

    def _confirm(self) -> None:
        """Asks again, as what was heard of each is of its own time: one that computes now may not have said so yet."""
        while True:
            with self._lock:
                if not self._have_parted(self._stands):
                    self._is_confirming = False
                    return
            answers = self._ask()
            if self._have_parted(answers):
                self._fail(parting(answers, self._left))
                return

    def _ask(self) -> dict[int, Stand]:
        """Where all stand now, as far as they answer."""
        with self._lock:
            self._question += 1
            self._answers.clear()
        self._tell({"ask": self._question})
        until = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < until and not self._connections.keys() <= self._answers.keys() | self._left:
            time.sleep(0.02)
        with self._lock:
            return {rank: stand for rank, stand in self._answers.items() if stand is not None}

    def _have_parted(self, stands: dict[int, Stand]) -> bool:
        waiting = {rank: stand for rank, stand in stands.items() if rank not in self._left and stand.collective}
        if not waiting or len(waiting.keys() | self._left) < self.world_size:
            return False
        if any(stand.waits_for(rank) for stand in waiting.values() for rank in self._left):
            return True
        return any(
            one.waits_for(other_rank) and other.waits_for(rank) and one.misses(other)
            for rank, one in waiting.items()
            for other_rank, other in waiting.items()
        )

    # ------------------------------------------------------------------------------------------------ telling

    def _fail(self, failure: dict[str, Any]) -> None:
        with self._lock:
            failure = {"run": max(self._runs.values(), default=0)} | failure
            if self._failure is not None and failure["run"] <= self._failure["run"] and not self._is_common:
                return
            self._failure, self._is_common = failure, False
            self._seen.clear()
        self._tell({"failure": failure})
        threading.Thread(target=self._conclude, args=(failure,), name="fulmen-watch-report", daemon=True).start()

    def _conclude(self, failure: dict[str, Any]) -> None:
        """Waits for where the others stand, and sends the report to all."""
        until = time.monotonic() + GATHER_SECONDS
        while time.monotonic() < until and not self._connections.keys() <= self._seen.keys():
            time.sleep(0.02)
        self._tell({"report": compose(failure, dict(self._seen), self.world_size), "of": failure["run"]})

    def _tell_if_common(self) -> None:
        """Tells all if all have failed by themselves: then nobody waits for anybody, and none has to be ended."""
        if self._failure is not None and self._failed >= set(range(self.world_size)):
            self._is_common = True
            self._tell({"common": self._failure["run"]})

    def _tell(self, message: dict[str, Any]) -> None:
        line = (json.dumps(message) + "\n").encode()
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            with suppress(OSError):
                connection.sendall(line)


def keep_alive(connection: socket.socket) -> None:
    """Let the system find out within a minute when the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def close_inherited(connection: socket.socket) -> None:
    """Close a socket in a forked process, without a word to the other end, and whoever still reads from it here."""
    with suppress(OSError):
        os.close(connection.detach())


def _listening(is_reachable: bool) -> socket.socket:
    if not is_reachable:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
