"""Running a function in new processes: spawned, or forked from this one."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import start_processes

from fulmen.fabric.launch.base import PARENT_VARIABLE, Launcher, share_threads
from fulmen.fabric.seed import capture_random, restore_random
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.fabric.strategies.parallel import ParallelStrategy

StartMethod = Literal["spawn", "fork", "forkserver"]


class ProcessLauncher(Launcher):
    """Runs a function in one new process for each device of this machine, and brings back what rank 0 returned.

    Args:
        strategy: Is told which process it is in.
        start_method: "spawn", "fork" or "forkserver"; of these only a fork works in a notebook.

    Attributes:
        procs: The processes that were started.
    """

    needs_function: ClassVar[bool] = True

    def __init__(self, strategy: ParallelStrategy, start_method: StartMethod = "spawn") -> None:
        if start_method not in mp.get_all_start_methods():
            raise ValueError(
                f"start_method={start_method!r} is not known on this machine. Type one of:"
                f" {', '.join(mp.get_all_start_methods())}"
            )
        self.strategy, self.start_method = strategy, start_method
        self.procs: list[Any] = []

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook or an interactive interpreter."""
        return self.start_method == "fork"

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Run the function in all processes, wait for them, and return what it returned on rank 0.

        Raises:
            NotImplementedError: A second run of the same Trainer, of which this process has only a part of the state.
            RuntimeError: A fork after CUDA was initialised.
        """
        if self.start_method == "fork" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise RuntimeError(
                "CUDA is initialised in this process, and does not survive a fork. Touch no CUDA device before this"
                " point (in a notebook: restart it), or put the code into a script and type: strategy='ddp'"
            )
        if self.procs and trainer is not None:
            raise NotImplementedError(
                "A Trainer whose processes are spawned or forked runs once: this process has only a part of its state."
                " Make a new Trainer, or type: strategy='ddp'"
            )
        environment = self.strategy.environment
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
            work = _Work(self, function, args, kwargs, trainer, os.path.join(folder, "result"), _globals())
            context = start_processes(  # type: ignore[no-untyped-call]
                work, nprocs=self.strategy.num_processes, start_method=self.start_method, join=False
            )
            assert context is not None
            self.procs = context.processes
            while not context.join():
                pass
            with open(work.path, "rb") as file:
                result, extra = torch.load(file, weights_only=False)
        if trainer is not None:
            self.update_main_process_results(trainer, extra)
        return result

    def kill(self, signum: int) -> None:
        """Send a signal to the processes that were started here."""
        for process in self.procs:
            if process.is_alive() and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    @staticmethod
    def get_extra_results(trainer: Any) -> dict[str, Any]:
        """What is brought back of the Trainer of rank 0: weights after a fit, metrics, state, the best checkpoint."""
        callback = trainer.checkpoint_callback
        in_fit = trainer.state.fn == "fit"
        weights = trainer.strategy.lightning_module_state_dict() if in_fit else None
        return {
            "weights": None if weights is None else move(weights, torch.device("cpu")),
            "metrics": move(dict(trainer.callback_metrics), torch.device("cpu")),
            "state": trainer.state,
            "best_model_path": getattr(callback, "best_model_path", None),
        }

    @staticmethod
    def update_main_process_results(trainer: Any, extra: dict[str, Any]) -> None:
        """Put what was brought back into the Trainer of this process."""
        if extra["best_model_path"] is not None and trainer.checkpoint_callback is not None:
            trainer.checkpoint_callback.best_model_path = extra["best_model_path"]
        if extra["weights"] is not None:
            trainer.lightning_module.load_state_dict(extra["weights"])
        trainer.state = extra["state"]
        trainer.callback_metrics.update(extra["metrics"])


class _Work:
    """What runs in each of the processes; pickled if they are spawned."""

    def __init__(
        self,
        launcher: ProcessLauncher,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        trainer: Any,
        path: str,
        process_globals: dict[str, Any],
    ) -> None:
        self.strategy, self.start_method = launcher.strategy, launcher.start_method
        self.function, self.args, self.kwargs, self.trainer = function, args, kwargs, trainer
        self.path, self.process_globals = path, process_globals
        self.parent = os.getpid()

    def __call__(self, local_rank: int) -> None:
        """The process of a local rank begins here."""
        os.environ[PARENT_VARIABLE] = str(self.parent)
        os.environ["LOCAL_RANK"] = str(local_rank)
        if self.start_method != "fork":
            _set_globals(self.process_globals)
        share_threads(self.strategy.num_processes)
        self.strategy.set_local_rank(local_rank)
        result = self.function(*self.args, **self.kwargs)
        if local_rank == 0:
            extra = {} if self.trainer is None else ProcessLauncher.get_extra_results(self.trainer)
            buffer = io.BytesIO()
            torch.save((move(result, torch.device("cpu")), extra), buffer)
            with open(self.path, "wb") as file:
                file.write(buffer.getvalue())


def _globals() -> dict[str, Any]:
    """Settings of torch and random states that a spawned process would not have."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "random": capture_random(),
    }


def _set_globals(settings: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.backends.cudnn.deterministic = settings["cudnn_deterministic"]
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    torch.set_float32_matmul_precision(settings["float32_matmul_precision"])
    restore_random(settings["random"])
