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
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from fulmen.fabric import distributed
from fulmen.fabric.watch.leaving import Leaving
from fulmen.fabric.watch.look import LOOK_SECONDS, Look
from fulmen.fabric.watch.report import compose, death_of, failure_of, others_in
from fulmen.fabric.watch.server import GATHER_SECONDS, Server, close_inherited, keep_alive
from fulmen.fabric.watch.stand import Stand, main_frame, stand_of
from fulmen.ranks import log

if TYPE_CHECKING:
    from fulmen.fabric.strategies.parallel import ParallelStrategy

GRACE_SECONDS = 4.0
"""How long a process has to end by itself after another has failed."""

_CAUSE_SECONDS = 2.0
"""How long is waited for the cause when an exchange with another process failed."""

_CONNECT_SECONDS = 10.0
_FLUSH_SECONDS = 1.0

_SIGNS_OF_ANOTHER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
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
        address: Host of rank 0; "" where all processes are of one machine.

    Attributes:
        failure: What has failed first in this run, or a later one; None as long as nothing has.
        report: The report of it, as soon as it is there.
        leaving: Through which all processes leave a run together; None where rank 0 cannot be reached.
        is_reported_elsewhere: Whether the process that launched this one raises what is raised here, so that rank 0
            does not print it.
    """

    def __init__(self, rank: int, world_size: int, address: str = "") -> None:
        self.rank, self.world_size = rank, world_size
        self.server: Server | None = None
        self.failure: dict[str, Any] | None = None
        self.report: str | None = None
        self.is_reported_elsewhere = False
        self._strategy: Callable[[], ParallelStrategy | None] = lambda: None
        self._run = 0
        self._asked: int | None = None
        self._ended_run = -1
        self._explained: BaseException | None = None
        self._explanation: BaseException | None = None
        self._common_run = -1
        self._heard, self._concluded, self._over = threading.Event(), threading.Event(), threading.Event()
        self._lock, self._process = threading.Lock(), os.getpid()
        self._main = threading.get_ident()
        self._socket: socket.socket | None = self._connect(address)
        self.leaving = None if self._socket is None else Leaving(self._send)
        if self._socket is None:
            return
        threading.Thread(target=self._listen, args=(self._socket,), name="fulmen-watch", daemon=True).start()
        threading.Thread(target=self._look, name="fulmen-look", daemon=True).start()
        self._excepthook, sys.excepthook = sys.excepthook, self._on_uncaught
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)  # a crash can say where at least here
        # of multiprocessing, whose own processes run no functions of `atexit`; in all others these run at the exit, too
        Finalize(None, self.leave, exitpriority=10)
        os.register_at_fork(after_in_child=self._forget_in_child)

    def _connect(self, address: str) -> socket.socket | None:
        where: tuple[int, str] | None = None
        if self.rank == 0:
            self.server = Server(self.world_size, secrets.token_hex(16), is_reachable=bool(address))
            where = (self.server.port, self.server.token)
        where = distributed.broadcast(where, name="watch")
        assert where is not None
        port, token = where
        host = address if address and self.rank else "127.0.0.1"
        try:
            connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            log.warning(
                "Rank %d cannot reach %s:%d (%s). Training goes on, but where one process fails, the others may wait"
                " for it up to the timeout of the process group. Open that port, or all ports, between the machines.",
                *(self.rank, host, port, error),
            )
            return None
        connection.settimeout(None)
        keep_alive(connection)
        connection.sendall((json.dumps({"rank": self.rank, "token": token}) + "\n").encode())
        return connection

    # ------------------------------------------------------------------------------------------------ the main thread

    def begin(self, strategy: ParallelStrategy) -> None:
        """A run begins: what failed before is over, as the program has caught it.

        Args:
            strategy: Says where the run is, and whether a backward pass exchanges gradients.
        """
        self._strategy = weakref.ref(strategy)
        self._main = threading.get_ident()
        self._run += 1
        if self.failure is not None and self.failure["run"] < self._run:
            self.failure = self.report = None
            self._heard.clear()
            self._concluded.clear()
        self._send({"begins": self._run})

    def explain(self, error: BaseException) -> BaseException:
        """Tell the others of an exception of this process, or learn that it only follows from that of another.

        Args:
            error: What ended the run here.

        Returns:
            The same, or a `RankFailedError` if it came from the failure of another process.
        """
        if self._socket is None:
            return error
        if error is not self._explained and error is not self._explanation:
            self._explained, self._explanation = error, None  # told once, however often it passes by
            self._explanation = self._explain(error)
        assert self._explanation is not None
        return self._explanation

    def _explain(self, error: BaseException) -> BaseException:
        self._ended_run = self._run
        follows = comes_from_another(error)
        if follows and self.failure is None:
            self._send({"broken": True})
            self._heard.wait(_CAUSE_SECONDS)
        if not follows or self.failure is None:
            self._send({"failed": failure_of(self.rank, error) | {"run": self._run}})
        self._concluded.wait(GATHER_SECONDS + 1)
        failure, report = self.failure, self.report
        if failure is None or report is None:
            return error
        if failure["rank"] == self.rank and failure["kind"] == "raised":
            error.add_note(f"This was rank {self.rank} of {self.world_size}. {others_in(report)}".rstrip())
            return error
        if follows:
            return RankFailedError(report, failure["rank"])
        error.add_note(f"This was rank {self.rank} of {self.world_size}, and another was the first to fail. {report}")
        return error

    def leave(self) -> None:
        """This process ends, in order or after an exception. Rank 0 stays until all have left, for their reports."""
        if self._over.is_set() or self._socket is None:
            return
        if self.failure is not None:
            self._silence = open(os.devnull, "w")  # noqa: SIM115 - it has to stay open to the end of the process
            faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True, file=self._silence)
        self._send({"left": True})
        if self.server is not None and self.failure is None:
            while self.server.others_are_here():  # what fails there meanwhile ends this process, too, in another thread
                time.sleep(0.05)
        self._over.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def child_ended(self, local_rank: int, exit_code: int) -> bool:
        """The launcher, in this process of local rank 0, saw one of its processes end.

        Args:
            local_rank: Which.
            exit_code: How; that of a signal is negative.

        Returns:
            Whether the watch sees to the rest.
        """
        self._send({"ended": self.rank + local_rank, "exit_code": exit_code})
        return self._socket is not None

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        """An exception that nobody catches ends this process: others learn of it, and one report is enough."""
        if os.getpid() != self._process or self._over.is_set() or not isinstance(error, Exception):
            self._excepthook(kind, error, traceback)
            return
        explained = self.explain(error)
        if self.failure is None or self._speaks(self.failure) or not _prints_tracebacks(self._excepthook):
            traceback = traceback if explained is error else explained.__traceback__
            self._excepthook(type(explained), explained, traceback)
            return
        first = str(error).partition("\n")[0]
        print(f"[rank {self.rank}] {kind.__name__}: {first} (the report is on rank 0)", file=sys.stderr, flush=True)

    def _forget_in_child(self) -> None:
        """A process that was forked from this one, as a loader's worker is, keeps no connection of this one open."""
        if self._socket is not None:
            close_inherited(self._socket)
            self._socket = None
        if self.server is not None:
            self.server.close_inherited()

    # ------------------------------------------------------------------------------------------------ the other threads

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            with suppress(OSError), self._lock:
                self._socket.sendall((json.dumps(message) + "\n").encode())

    def _listen(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                self._take(json.loads(line))
        if not self._over.is_set() and self.failure is None and self.rank != 0:
            self._lose_rank_zero()

    def _take(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self._asked = message["ask"]
        elif "failure" in message:
            self._hear(message["failure"])
        elif "report" in message and self.failure is not None and message["of"] == self.failure["run"]:
            self.report = message["report"]
            self._concluded.set()
        elif "common" in message:
            self._common_run = message["common"]
        elif self.leaving is not None:
            self.leaving.take(message)

    def _lose_rank_zero(self) -> None:
        """The server is gone, and would not have gone before this process."""
        failure = death_of(0) | {"run": self._run}
        self.report = compose(failure, {self.rank: self._stand().as_dict()}, self.world_size)
        self._concluded.set()
        self._hear(failure)

    def _hear(self, failure: dict[str, Any]) -> None:
        if failure["run"] < self._run:
            return  # of a run that is over here
        self.failure = failure
        self._send({"seen": self._stand().as_dict()})
        self._heard.set()
        threading.Thread(target=self._end, args=(failure,), name="fulmen-end", daemon=True).start()

    def _end(self, failure: dict[str, Any]) -> None:
        """Ends this process if it does not do so by itself."""
        self._concluded.wait(GATHER_SECONDS + 1)
        look = Look(self._main)
        stands_still = failure["kind"] not in ("raised", "died")  # for certain, and nobody comes
        until = time.monotonic() + (0 if stands_still else GRACE_SECONDS)
        while failure is self.failure and self._common_run < failure["run"]:
            look.again(self._place())
            has_ended = self._ended_run >= failure["run"]
            if time.monotonic() >= until and not has_ended:  # no exception has come up here
                if self._speaks(failure):
                    print(f"\n{self.report}\n", file=sys.stderr, flush=True)
                    time.sleep(LOOK_SECONDS)  # the others end first: to them this end is a broken exchange
                _exit()
            if has_ended and look.is_still and self._stand(look.is_idle).collective:  # while it handles its exception
                _exit()
            time.sleep(LOOK_SECONDS)

    def _speaks(self, failure: dict[str, Any]) -> bool:
        """Whether the report is this process's to print: rank 0's, or rank 1's if that is dead."""
        if self.is_reported_elsewhere and failure["kind"] == "raised":
            return False
        is_rank_zero_dead = failure["kind"] == "died" and failure["rank"] == 0
        return self.rank == (1 if is_rank_zero_dead else 0)

    def _place(self) -> str:
        strategy = self._strategy()
        return "" if strategy is None else strategy.place()

    def _stand(self, is_idle: bool = True) -> Stand:
        strategy = self._strategy()
        syncs_backward = strategy is not None and strategy.syncs_backward()
        return stand_of(main_frame(self._main), self._place(), syncs_backward, is_idle)

    def _look(self) -> None:
        """Says so when this process waits for others, and when it goes on."""
        look, said = Look(self._main), None
        while not self._over.wait(LOOK_SECONDS):
            if look.thread_id != self._main:
                look = Look(self._main)
            asked, self._asked = self._asked, None
            look.again(self._place())
            stand = self._stand(look.is_idle) if look.is_still else None
            if stand is not None and not stand.collective:
                stand = None
            if stand != said or asked is not None:
                answer = {} if asked is None else {"answers": asked}
                self._send({"stands": None if stand is None else stand.as_dict()} | answer)
                said = stand


def comes_from_another(error: BaseException) -> bool:
    """Whether an exception is what torch raises when another process is gone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_ANOTHER)


def _prints_tracebacks(hook: Any) -> bool:
    """Whether this is Python's hook for exceptions, or torch's, which puts the rank in front."""
    return hook is sys.__excepthook__ or str(getattr(hook, "__module__", "")).startswith("torch.")


def _exit() -> None:
    """End this process at once, with what it has printed; the main thread may be anywhere, also in a write."""
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(_FLUSH_SECONDS)
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
