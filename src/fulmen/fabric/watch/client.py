"""The watch of one process: says where it stands, hears when another has failed, and ends a process that hangs."""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

from fulmen.fabric import distributed
from fulmen.fabric.watch.leaving import Leaving
from fulmen.fabric.watch.report import compose, death_of, failure_of
from fulmen.fabric.watch.server import GATHER_SECONDS, Server
from fulmen.fabric.watch.stand import Stand, main_frame, stand_of

LOOK_SECONDS = 0.5
"""How often is looked where this process stands."""

STILL_SECONDS = 3.0
"""After this time at one instruction a process is said to stand still."""

GRACE_SECONDS = 4.0
"""How long a process has to end by itself after another has failed."""

_CAUSE_SECONDS = 2.0
"""How long is waited for the cause when an exchange with another process failed."""

_SIGNS_OF_ANOTHER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "[../third_party/gloo",
    "gloo/transport",
    "NCCL",
    "TCPStore",
)


class RankFailedError(RuntimeError):
    """Another process of the run has failed; the message is the report.

    Args:
        report: Who failed first, how, and where the others stood.
        rank: The process that failed first.
    """

    def __init__(self, report: str, rank: int) -> None:
        super().__init__(report)
        self.rank = rank

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.rank)


class Watch:
    """Connects this process with the server on rank 0, from the making of the process group to the end of the process.

    Args:
        rank: Of this process.
        world_size: Number of processes.
        address: Host of rank 0.
    """

    def __init__(self, rank: int, world_size: int, address: str) -> None:
        self.rank, self.world_size = rank, world_size
        self.place: Callable[[], str] = str
        self.syncs_backward: Callable[[], bool] = bool
        self.server: Server | None = None
        self.failure: dict[str, Any] | None = None
        self.report: str | None = None
        self._heard, self._concluded = threading.Event(), threading.Event()
        self._ending = False
        self._told = False
        self._main = threading.main_thread().ident or 0
        where: tuple[int, str] | None = None
        if rank == 0:
            token = secrets.token_hex(16)
            self.server = Server(world_size, token)
            where = (self.server.port, token)
        where = distributed.broadcast(where, name="watch")
        assert where is not None
        port, token = where
        host = "127.0.0.1" if rank == 0 else address
        self._socket = socket.create_connection((host, port), timeout=30)
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self.leaving = Leaving(self._send)
        self._send({"rank": rank, "token": token})
        threading.Thread(target=self._listen, name="fulmen-watch", daemon=True).start()
        threading.Thread(target=self._look, name="fulmen-look", daemon=True).start()
        # of multiprocessing, whose own processes run no functions of `atexit`; in all others these run at the exit, too
        Finalize(None, self.leave, exitpriority=10)

    # ------------------------------------------------------------------------------------------------ the main thread

    def explain(self, error: BaseException) -> BaseException:
        """Tell the others of an exception of this process, or learn that it only follows from that of another.

        Args:
            error: What ended the run here.

        Returns:
            The same, or a `RankFailedError` if another process failed first.
        """
        self._ending = True
        if self.failure is None and _comes_from_another(error):
            self._heard.wait(_CAUSE_SECONDS)
        if self.failure is None:
            self._send({"failed": failure_of(self.rank, error)})
            self._told = True
        self._concluded.wait(GATHER_SECONDS + 1)
        failure = self.failure
        if failure is None or self.report is None:
            return error
        if not self._speaks(failure):
            _say_one_line(self.rank)
        if failure["rank"] == self.rank and failure["kind"] == "raised":
            others = self.report[self.report.find("Where the others stood:") :]
            if self.report != others and others not in getattr(error, "__notes__", ()):
                error.add_note(f"This was rank {self.rank} of {self.world_size}. {others}")
            return error
        return RankFailedError(self.report, failure["rank"])

    def begin(self) -> None:
        """A run begins: what failed before is over, as the program has caught it."""
        self._ending = False
        if self._heard.is_set() or self._told:
            self.failure = self.report = None
            self._heard.clear()
            self._concluded.clear()
            self._told = False
            self._send({"begins": True})

    def leave(self) -> None:
        """This process ends in order, or after an exception: then it must not wait for others any more."""
        if self.failure is not None:
            self._silence = open(os.devnull, "w")  # noqa: SIM115 - it has to stay open to the end of the process
            faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True, file=self._silence)
        self._send({"left": True})
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def child_ended(self, rank: int, exit_code: int) -> bool:
        """A launcher on rank 0 saw one of its processes end; the watch sees to the rest."""
        if self.server is not None:
            self.server.child_ended(rank, exit_code)
        return self.server is not None

    # ------------------------------------------------------------------------------------------------ the other threads

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError), self._lock:
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def _listen(self) -> None:
        with suppress(OSError, ValueError), self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if "failure" in message:
                    self._hear(message["failure"])
                elif "leave" in message or "leave_after" in message:
                    self.leaving.take(message)
                elif "report" in message:
                    self.report = message["report"]
                    self._concluded.set()
        if self.failure is None and self.rank != 0 and not sys.is_finalizing():
            failure = death_of(0)
            self.report = compose(failure, {self.rank: self._stand().as_dict()}, self.world_size)
            self._hear(failure)
            self._concluded.set()

    def _hear(self, failure: dict[str, Any]) -> None:
        self.failure = failure
        self._send({"seen": self._stand().as_dict()})
        self._heard.set()
        threading.Thread(target=self._end, name="fulmen-end", daemon=True).start()

    def _end(self) -> None:
        """Ends this process if it does not do so by itself."""
        self._concluded.wait(GATHER_SECONDS + 1)
        failure = self.failure
        if failure is None:
            return
        if failure["kind"] in ("raised", "died"):  # else it stands still, and nobody comes
            time.sleep(GRACE_SECONDS)
        if failure is not self.failure or (self._ending and not self._stand().collective):
            return  # the program has seen the exception, and goes on as it likes
        if not self._ending and self._speaks(failure):
            print(f"\n{self.report}\n", file=sys.stderr, flush=True)
        os._exit(1)

    def _speaks(self, failure: dict[str, Any]) -> bool:
        """Whether the report is this process's to print: rank 0's, or of all if that is dead."""
        return self.rank == 0 or (failure["kind"] == "died" and failure["rank"] == 0)

    def _stand(self) -> Stand:
        return stand_of(main_frame(self._main), self.place(), self.syncs_backward())

    def _look(self) -> None:
        """Says so when this process stands still, and when it goes on."""
        before: tuple[int, int, str] | None = None
        since, said = time.monotonic(), False
        while not sys.is_finalizing():
            frame = main_frame(self._main)
            now = None if frame is None else (id(frame), frame.f_lasti, self.place())
            if now != before:
                before, since = now, time.monotonic()
                if said:
                    self._send({"stands": None})
                    said = False
            elif not said and time.monotonic() - since >= STILL_SECONDS:
                self._send({"stands": stand_of(frame, self.place(), self.syncs_backward()).as_dict()})
                said = True
            del frame
            time.sleep(LOOK_SECONDS)


def _comes_from_another(error: BaseException) -> bool:
    """Whether an exception is what torch raises when another process is gone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_ANOTHER)


def _say_one_line(rank: int) -> None:
    """From here on an exception that nobody catches is one line in this process: rank 0 has the report."""
    if not _prints_tracebacks(sys.excepthook):
        return

    def one_line(kind: type[BaseException], error: BaseException, _: Any) -> None:
        first = str(error).splitlines()[0] if str(error) else ""
        print(f"[rank {rank}] {kind.__name__}: {first} (the report is on rank 0)", file=sys.stderr, flush=True)

    sys.excepthook = one_line


def _prints_tracebacks(hook: Any) -> bool:
    """Whether this is Python's hook for exceptions, or torch's, which puts the rank in front."""
    return hook is sys.__excepthook__ or str(getattr(hook, "__module__", "")).startswith("torch.")
