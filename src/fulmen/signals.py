"""Signals during a run: the handlers set a flag, the loop acts on it after the batch under way."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from fulmen.ranks import rank_zero_info


class Signals:
    """Installs handlers for SIGTERM and SIGINT around a run, and puts the former ones back.

    Attributes:
        sigterm: Whether SIGTERM has come.
        received: Whether either has come: the run is asked to leave.
        sigint: Whether Ctrl-C was pressed. A second one raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.sigterm = False
        self.sigint = False
        self.received = False
        self.closing = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        self.sigterm = self.sigint = self.received = self.closing = False
        # Python delivers signals to the main thread only, and only it may install handlers.
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._install(signal.SIGTERM, self._on_sigterm)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._install(signal.SIGINT, self._on_sigint)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing = error is not None
        if error is None:
            self.restore()
            if self.sigint:  # it came too late for the loop to act on it
                raise KeyboardInterrupt

    def restore(self) -> None:
        """Puts the former handlers back. After an exception this is the caller's to do, when all is saved."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def killed_worker(self, error: BaseException) -> bool:
        """Whether ``error`` is torch's about a loader's worker that the SIGTERM of this run has reached as well."""
        return self.sigterm and isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")

    def _install(self, number: signal.Signals, handler: Any) -> None:
        self._before[number] = signal.getsignal(number)
        signal.signal(number, handler)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if os.getpid() != self._process:  # a child that was forked in a run is no run
            signal.signal(number, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.sigterm = self.received = True
        if callable(before):
            before(number, frame)

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self.closing or os.getpid() != self._process:  # a loader's workers are ended by the run, in order
            return
        if self.sigint:
            raise KeyboardInterrupt
        self.sigint = self.received = True
        with suppress(RuntimeError):  # the signal came in the middle of a write to the same stream
            rank_zero_info("Ctrl-C: the run ends after this batch. Press it again to leave at once.")
