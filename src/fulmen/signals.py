"""Signals during a run: the handlers set a flag, the loop acts on it after the batch under way.

Of several processes all leave after the same batch, also if only one has got the signal. They find out which through
the watch (``fabric/watch/leaving.py``), and exchange nothing before.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from fulmen.errors import SIGTERMException
from fulmen.ranks import rank_zero_info
from fulmen.states import TrainerFn

if TYPE_CHECKING:
    from fulmen.fabric.watch.leaving import Leaving
    from fulmen.trainer import Trainer


def leave(trainer: Trainer) -> None:
    """Ends a run at a safe point, unless the other processes come to theirs later.

    In an evaluation they are not in step, so that the one inside fit is brought to its end.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        SIGTERMException: After SIGTERM.
    """
    in_fit = trainer.state.fn == TrainerFn.FITTING
    if in_fit and trainer.evaluating and trainer.world_size > 1:
        return
    if trainer.signals.goes_on(trainer.fit_loop.count_begun(), in_step=in_fit):
        return
    if trainer.signals.sigint:
        raise KeyboardInterrupt
    raise SIGTERMException


class Signals:
    """Installs handlers for SIGTERM and SIGINT around a run, and puts the former ones back.

    Attributes:
        sigterm: Whether SIGTERM has come.
        received: Whether either has come: the run is asked to leave.
        sigint: Whether Ctrl-C was pressed. A second one raises KeyboardInterrupt at once.
        leaves: Whether the run has been left for one of them.
        together: Whether all processes have left it after the same batch.
    """

    def __init__(self) -> None:
        self.sigterm = False
        self.sigint = False
        self.received = False
        self.closing = False
        self.leaves = self.together = False
        self._leaving: Leaving | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        self.sigterm = self.sigint = self.received = self.closing = self.leaves = self.together = False
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
            self.leaves = self.sigint
            if self.sigint:  # it came too late for the loop to act on it
                raise KeyboardInterrupt

    def share(self, leaving: Leaving | None, begun: Callable[[], int]) -> None:
        """From here on a signal to one process is one to all.

        Args:
            leaving: Through which the processes agree; None for one process.
            begun: How many batches have begun.
        """
        self._leaving = leaving
        if leaving is not None:
            leaving.begin(self._on_ask, begun)

    def goes_on(self, begun: int, in_step: bool) -> bool:
        """Whether the run goes on for a while, although it was asked to end.

        Args:
            begun: How many batches have begun, all of which are done.
            in_step: Whether all processes come to this point after the same batches.
        """
        self.leaves = True
        if self._leaving is None:
            return False
        if not in_step:
            self._leaving.ask(self._reason)
            return False
        after = self._leaving.agree(self._reason)
        self.leaves = after is None or begun >= after
        self.together = self.leaves and after is not None
        return not self.leaves

    @property
    def _reason(self) -> str:
        return "SIGINT" if self.sigint else "SIGTERM"

    def _on_ask(self, reason: str) -> None:
        """Another process has got a signal (called in another thread)."""
        if reason == "SIGINT":
            self.sigint = True
        else:
            self.sigterm = True
        self.received = True

    def restore(self) -> None:
        """Puts the former handlers back. After an exception this is the caller's to do, when all is saved."""
        if self._leaving is not None:
            self._leaving.end()
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def caused(self, error: BaseException) -> bool:
        """Whether ``error`` is torch's about something that the SIGTERM of this run has reached as well.

        That is a loader's worker, or another process that this one waits for in an evaluation.
        """
        if not self.sigterm or not isinstance(error, RuntimeError):
            return False
        from fulmen.fabric.watch import comes_from_another

        return str(error).startswith("DataLoader worker (pid") or comes_from_another(error)

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
