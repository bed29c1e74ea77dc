"""Tests with several real processes: `run_ranks` runs a function on all ranks and brings the results back.

    from processes import run_ranks

    def mean_of_ranks(scale):  # at the top level of the test's file, so that another process can find it
        mean = torch.tensor(float(dist.get_rank() * scale))
        dist.all_reduce(mean)
        return mean.item() / dist.get_world_size()

    def test_mean():
        assert run_ranks(mean_of_ranks, 2, 10) == [5.0, 5.0]

What a rank finds: the variables that torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, ...), so
that a Trainer there knows what it is part of; a group of the backend "gloo", or none with `backend=None` for code that
makes its own; one thread; the current directory, environment variables and warning filters of the test. Arguments and
results are pickled: plain values and CPU tensors are best. A fixture is no argument, what it yields may be.

How it works: a server process imports torch and fulmen once for each worker of pytest (two seconds), and forks the
ranks from there (less than 0.1 s for two of them with their group; nothing of the test's own process is inherited).
The store through which they meet lives in the test's process, at a port that the system chose, so that no port is
looked for and lost. A rank that is done stays until all are, so that nobody loses a peer. When one fails, the others
get two seconds; when the time is over, everybody says where it stands and is killed with all its children, as it is
when the process of the test dies.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib.util
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from fulmen import ranks

__all__ = ["RanksFailed", "run_ranks"]

_IMPORTED_ONCE = [
    "fulmen.trainer",
    "fulmen.fabric",
    "fulmen.checkpoint.shards",
    "pytest",
    "hypothesis",
    "torch.distributed.fsdp",
    "torch._dynamo",  # brought by the first optimizer
]
_SECONDS_AFTER_A_FAILURE = 2.0
_SECONDS_TO_SAY_WHERE = 0.3


class RanksFailed(AssertionError):
    """Some rank raised, died or was still running; `reports` says how it went, by rank."""

    def __init__(self, reports: dict[int, str]) -> None:
        self.reports = reports
        super().__init__("\n\n".join(f"--- rank {rank} ---\n{text}" for rank, text in sorted(reports.items())))


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, backend: str | None = "gloo", timeout: float = 60
) -> list[Any]:
    """Run `function(*args)` in `world_size` processes at once.

    Args:
        function: A function at the top level of its file; its rank is `torch.distributed.get_rank()`, or RANK.
        world_size: Number of processes.
        *args: Arguments, the same for all.
        backend: Of the group that is there when the function starts; None for no group.
        timeout: Seconds after which all are killed.

    Returns:
        What the function returned, by rank.

    Raises:
        RanksFailed: On some rank it raised, or did not come to an end; with all tracebacks.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as directory:
        call = _Call.of(function, args, world_size, backend, store.port, directory)
        started: list[_Rank] = []
        try:
            for number in range(world_size):
                started.append(_start(call, number))
            _collect(started, timeout)
        finally:
            for rank in started:
                rank.kill()
        reports = {rank.number: rank.report(directory) for rank in started if not rank.succeeded}
    if reports:
        raise RanksFailed(reports)
    return [rank.result for rank in started]


@dataclass(frozen=True)
class _Call:
    """All that a new process has to know."""

    module: str
    file: str
    name: str
    args: bytes
    world_size: int
    backend: str | None
    variables: dict[str, str]
    working_directory: str
    output_directory: str
    filters: list[Any]

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        world_size: int,
        backend: str | None,
        port: int,
        output_directory: str,
    ) -> _Call:
        if "<" in function.__qualname__:
            raise TypeError(f"{function.__qualname__} has to be at the top level of its file for other processes.")
        torchrun = {
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_USE_AGENT_STORE": True,  # nobody makes a store of its own: it is here already
        }
        return cls(
            module=function.__module__,
            file=function.__code__.co_filename,
            name=function.__qualname__,
            args=pickle.dumps(args),
            world_size=world_size,
            backend=backend,
            variables=os.environ | {name: str(value) for name, value in torchrun.items()},
            working_directory=os.getcwd(),
            output_directory=output_directory,
            filters=list(warnings.filters),
        )


@dataclass
class _Rank:
    """A running process, as the test sees it."""

    number: int
    process: Any
    connection: Connection
    has_answered: bool = False
    succeeded: bool = False
    result: Any = None

    def read(self) -> None:
        """Take what the process has sent; its end without a word is an answer, too."""
        with suppress(EOFError, ConnectionError):
            self.succeeded, self.result = pickle.loads(self.connection.recv_bytes())
        self.has_answered = True

    def release(self) -> None:
        with suppress(BrokenPipeError):
            self.connection.send_bytes(b"all are done")

    def signal(self, number: signal.Signals) -> None:
        """To the process and all its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.kill()  # it may not have come so far as to have a group
        self.process.join()
        self.connection.close()

    def report(self, directory: str) -> str:
        if isinstance(self.result, str):
            how = self.result
        elif self.has_answered:
            how = f"It died with exit code {self.process.exitcode}."
        else:
            how = "It was still running."
        said = _output_file(directory, self.number)
        output = said.read_text(errors="replace")[-5000:] if said.exists() else ""
        return f"{how}\n{output}".strip()


def _start(call: _Call, number: int) -> _Rank:
    here, there = _context().Pipe()
    process = _context().Process(target=_run_rank, args=(call, number, there), name=f"rank-{number}")
    process.start()
    there.close()
    return _Rank(number, process, here)


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    return context


def _collect(started: list[_Rank], timeout: float) -> None:
    """Wait for the answers of all, and let them go; after a failure or at the end of the time ask who is left."""
    end = time.monotonic() + timeout
    waiting = list(started)
    while waiting and (seconds := end - time.monotonic()) > 0:
        ready = wait([rank.connection for rank in waiting], seconds)
        for rank in [rank for rank in waiting if rank.connection in ready]:
            rank.read()
            waiting.remove(rank)
            if not rank.succeeded:
                end = min(end, time.monotonic() + _SECONDS_AFTER_A_FAILURE)
    for rank in waiting:
        rank.signal(signal.SIGUSR2)
    if waiting:
        time.sleep(_SECONDS_TO_SAY_WHERE)
    else:
        for rank in started:
            rank.release()
        for rank in started:
            rank.process.join(max(1.0, end - time.monotonic()))


def _output_file(directory: str, rank: int) -> Path:
    return Path(directory) / f"{rank}.txt"


# What follows runs in the new processes


def _run_rank(call: _Call, rank: int, connection: Connection) -> None:
    os.setpgrp()  # so that its children end with it
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    _redirect_output(_output_file(call.output_directory, rank))
    _prepare(call, rank)
    try:
        if call.backend is not None:
            dist.init_process_group(call.backend, rank=rank, world_size=call.world_size)
        answer = pickle.dumps((True, _find(call)(*pickle.loads(call.args))))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    connection.send_bytes(answer)
    connection.recv_bytes()
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with_the_test() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _redirect_output(file: Path) -> None:
    with file.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.enable(file=2)  # of a crash
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)  # of a process that does not come to an end


def _prepare(call: _Call, rank: int) -> None:
    os.environ.clear()
    os.environ.update(call.variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    ranks.rank_zero_only.rank = ranks._rank_from(os.environ)  # fulmen was imported before there was a rank
    os.chdir(call.working_directory)
    warnings.filters[:] = call.filters
    torch.set_num_threads(1)


def _find(call: _Call) -> Callable[..., Any]:
    """The function, from its file: a test's module has no name by which it could be imported."""
    if call.module not in sys.modules:
        for place, letter in enumerate(call.module):  # what is pickled by name is looked for in its parents first
            if letter == "." and call.module[:place] not in sys.modules:
                sys.modules[call.module[:place]] = ModuleType(call.module[:place])
        spec = importlib.util.spec_from_file_location(call.module, call.file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[call.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(sys.modules[call.module], call.name)  # type: ignore[no-any-return]
