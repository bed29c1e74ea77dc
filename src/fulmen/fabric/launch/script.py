"""Starting the script again, once for each further device of this machine."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fulmen.fabric.environments import ClusterEnvironment
from fulmen.fabric.launch.base import PARENT_VARIABLE, Launcher, share_threads

_LOOK_SECONDS = 0.2
_END_SECONDS = 20.0


class ScriptLauncher(Launcher):
    """Runs the script of this process again for local ranks 1, 2, ...; this process goes on as rank 0.

    Args:
        cluster_environment: Where ranks and addresses come from.
        num_processes: Of this machine.
        num_nodes: Number of machines.

    Attributes:
        procs: The processes that were started.
        on_end: Called with local rank and exit code when one of them ends; says whether it sees to the rest.
    """

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        self.cluster_environment = cluster_environment
        self.num_processes, self.num_nodes = num_processes, num_nodes
        self.procs: list[subprocess.Popen[bytes]] = []
        self.on_end: Callable[[int, int], bool] = lambda rank, code: False

    @property
    def is_interactive_compatible(self) -> bool:
        """No: there is no script to run again."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes if they are not there, and run the function in this one."""
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
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        command = command_of_this_process()
        for local_rank in range(1, self.num_processes):
            variables = os.environ | {"LOCAL_RANK": str(local_rank), PARENT_VARIABLE: str(os.getpid())}
            self.procs.append(subprocess.Popen(command, env=variables))
        threading.Thread(target=self._look_after, name="fulmen-children", daemon=True).start()
        atexit.register(self._wait)

    def _look_after(self) -> None:
        """Tells when a child ends; ends everything if it ended badly before anybody else could see it."""
        alive = dict(enumerate(self.procs, start=1))
        while alive:
            time.sleep(_LOOK_SECONDS)
            for local_rank, process in list(alive.items()):
                code = process.poll()
                if code is None:
                    continue
                del alive[local_rank]
                if not self.on_end(local_rank, code) and code:
                    print(
                        f"\nThe process of local rank {local_rank} ended with exit code {code} before all processes had"
                        " met; the others are ended, too.\n",
                        file=sys.stderr,
                        flush=True,
                    )
                    self.kill(9)
                    os._exit(1)

    def _wait(self) -> None:
        """Waits until the children have ended; those that do not are killed."""
        until = time.monotonic() + _END_SECONDS
        for process in self.procs:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        self.kill(9)


def command_of_this_process() -> list[str]:
    """The command line that runs this program again, as a script or as a module.

    Raises:
        RuntimeError: There is no program: the interpreter was started with `-c`, or reads standard input.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return [sys.executable, *flags, "-m", name, *sys.argv[1:]]
    script = getattr(main, "__file__", None)
    if script is None or not os.path.exists(script):
        raise RuntimeError(
            "Several processes start by running the script again, and there is none (an interactive interpreter, `-c`,"
            " or standard input). Put the code into a file, or type: strategy='ddp_fork'"
        )
    return [sys.executable, *flags, os.path.abspath(script), *sys.argv[1:]]
