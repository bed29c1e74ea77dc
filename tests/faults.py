"""Runs a function that fails on some rank, as a script would, and says how each process ended.

    outcome = run_faulty(train_and_raise, 2, 1)
    assert outcome.codes == [1, 1]
    assert "Rank 1 of 2 failed first" in outcome.errors[0]

The processes are forked as those of `run_ranks` are, and find the same variables; they end as the main process of a
program does: what nobody catches goes to `sys.excepthook`, and the exit code tells.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from processes import _Call, _context, _end_with_the_test, _find, _prepare

SECONDS = 60.0
"""After this a process that has not ended hangs. It ends within ten seconds on a machine that is not busy."""


@dataclass
class Outcome:
    """How the processes ended.

    Attributes:
        codes: Exit code by rank; None for a process that hung.
        errors: What each wrote to its standard error.
        outputs: What each wrote to its standard output.
        seconds: From the fault, if a rank noted it by `note_fault`, to the end of the last process.
    """

    codes: list[int | None]
    errors: list[str]
    outputs: list[str]
    seconds: float | None


def note_fault() -> None:
    """The fault happens now."""
    Path("fault").write_text(str(time.time()))


def note_waiting() -> None:
    """This rank goes straight into an exchange with the others."""
    Path(f"waits-{os.environ['RANK']}").touch()


def wait_for_others() -> None:
    """Return when all other ranks have noted that they wait, and had the time to begin: then it is known where."""
    others = {f"waits-{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))} - {f"waits-{os.environ['RANK']}"}
    while not all(Path(name).exists() for name in others):
        time.sleep(0.02)
    time.sleep(1.0)


def run_faulty(function: Callable[..., Any], world_size: int, *args: Any) -> Outcome:
    """Run `function(*args)`, at the top level of its file, in `world_size` processes."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as directory:
        call = _Call.of(function, args, world_size, None, store.port, directory)
        processes = [
            _context().Process(target=_run, args=(call, rank), name=f"rank-{rank}") for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        codes = _ends(processes)
        ended = time.time()
        texts = [
            [Path(directory, f"{rank}.{kind}").read_text(errors="replace") for rank in range(world_size)]
            for kind in ("err", "out")
        ]
        fault = Path(directory, "fault")
        return Outcome(codes, texts[0], texts[1], ended - float(fault.read_text()) if fault.exists() else None)


def _ends(processes: list[Any]) -> list[int | None]:
    until = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
        process.join()
    return codes


def _run(call: _Call, rank: int) -> None:
    os.setpgrp()
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    for number, kind in ((1, "out"), (2, "err")):
        with open(Path(call.output_directory, f"{rank}.{kind}"), "w") as file:
            os.dup2(file.fileno(), number)
    _prepare(call, rank)
    os.chdir(call.output_directory)
    try:
        _find(call)(*pickle.loads(call.args))
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
