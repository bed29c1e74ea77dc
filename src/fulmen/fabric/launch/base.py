"""What all launchers share."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

PARENT_VARIABLE = "FULMEN_PARENT"
"""Process number of the one that started this one; without it a child knows nothing of its parent's end."""

_LOOK_SECONDS = 0.5


class Launcher(ABC):
    """Starts the processes of a strategy and runs a function in them."""

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook or an interactive interpreter."""

    @property
    def runs_here(self) -> bool:
        """Whether the function runs in this process, too; else only its result comes back."""
        return True

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Run a function in all processes.

        Args:
            function: The function.
            *args: Its arguments.
            trainer: The Trainer that launches, whose state is brought back from another process; None for a `Fabric`.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned on rank 0.
        """

    @abstractmethod
    def kill(self, signum: int) -> None:
        """Send a signal to the processes that were started here."""


def share_threads(num_processes: int) -> None:
    """Divide the cores of this machine among its processes, unless OMP_NUM_THREADS says how many each may use."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // max(1, num_processes))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def end_with_parent() -> None:
    """Let this process end when the one that launched it is gone; nothing to do where none did."""
    parent = int(os.environ.pop(PARENT_VARIABLE, "0"))  # processes that this one starts have another parent
    if parent in (0, os.getpid()):
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        # once orphaned: what the watch reports by itself it has reported by then
        time.sleep(10 * _LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="fulmen-parent", daemon=True).start()
