"""Starting the script again, once for each further device of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

from fulmen.errors import SIGTERM_EXIT_CODE
from fulmen.fabric import distributed
from fulmen.fabric.environments import ClusterEnvironment
from fulmen.fabric.launch.base import PARENT_VARIABLE, Launcher, share_threads
from fulmen.fabric.launch.command import command_of

_LOOK_SECONDS = 0.2
_END_SECONDS = 20.0
_ALONE_SECONDS = 1.0


class ScriptLauncher(Launcher):
    """Runs the script of this process again for local ranks 1, 2, ...; this process goes on as rank 0.

    Args:
        cluster_environment: Where ranks and addresses come from.
        num_processes: Of this machine.
        num_nodes: Number of machines.

    Attributes:
        procs: The processes that were started.
        on_end: Called with local rank and exit code when one of them ends; says whether it sees to the rest. None
            before all processes have met.
    """

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        self.cluster_environment = cluster_environment
        self.num_processes, self.num_nodes = num_processes, num_nodes
        self.procs: list[subprocess.Popen[bytes]] = []
        self.on_end: Callable[[int, int], bool] | None = None

    @property
    def is_interactive_compatible(self) -> bool:
        """No: there is no script to run again."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes if they are not there, and run the function in this one.

        Raises:
            RuntimeError: There is no script to run again.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._start()
        share_threads(self.num_processes)
        return function(*args, **kwargs)

    def kill(self, signum: int) -> None:
        """Send a signal to the processes that were started here."""
        for process in self.procs:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signum)

    def _start(self) -> None:
        if self.procs:
            raise RuntimeError("The processes of this run are there already: a script launches once.")
        environment = self.cluster_environment
        if environment.local_rank() != 0:
            raise RuntimeError(
                f"This process is of local rank {environment.local_rank()}, and only rank 0 starts others."
            )
        variables = {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        commands = [command_of(local_rank) for local_rank in range(1, self.num_processes)]
        os.environ |= variables
        for local_rank, (command, directory) in enumerate(commands, start=1):
            own = {"LOCAL_RANK": str(local_rank), PARENT_VARIABLE: str(os.getpid())}
            self.procs.append(subprocess.Popen(command, env=os.environ | own, cwd=directory))
        threading.Thread(target=self._look_after, name="fulmen-children", daemon=True).start()
        # after the watch, and before the process group ends
        Finalize(None, self._wait, exitpriority=7)

    def _look_after(self) -> None:
        """Tells when a child ends; ends everything if it did before anybody else could see it."""
        alive = dict(enumerate(self.procs, start=1))
        while alive:
            time.sleep(_LOOK_SECONDS)
            for local_rank, process in list(alive.items()):
                code = process.poll()
                if code is not None:
                    del alive[local_rank]
                    self._take_end(local_rank, code)

    def _take_end(self, local_rank: int, code: int) -> None:
        if self.on_end is not None and self.on_end(local_rank, code):
            return
        if code == 0 and distributed.is_initialised():
            return
        time.sleep(_ALONE_SECONDS)  # this process may be about to end for the same reason
        print(
            f"\nThe process of local rank {local_rank} ended with exit code {code} before all processes had met;"
            " the others are ended, too.\n",
            file=sys.stderr,
            flush=True,
        )
        self.kill(9)
        os._exit(1)

    def _wait(self) -> None:
        """Waits until the children have ended; those that do not are killed. What failed there has failed here."""
        have_met = self.on_end is not None or distributed.is_initialised()
        until = time.monotonic() + (_END_SECONDS if have_met else _ALONE_SECONDS)
        for process in self.procs:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        self.kill(9)
        codes = [process.wait() for process in self.procs]
        failed = next((code for code in codes if code), 0)
        if failed:
            _exit_as_failed(codes, failed)


def _exit_as_failed(codes: list[int], failed: int) -> None:
    """End this process as its children have ended; without an exception of its own it would seem to have succeeded."""
    raised = hasattr(sys, "last_value")
    if not raised and failed != SIGTERM_EXIT_CODE:
        print(f"The processes of local ranks 1, ... ended with exit codes {codes}.", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if raised:
        os._exit(1)
    os._exit(failed if failed > 0 else 128 - failed)
