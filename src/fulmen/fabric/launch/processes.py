"""Running a function in new processes: spawned, or forked from this one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from fulmen.fabric.launch.base import PARENT_VARIABLE, Launcher, share_threads
from fulmen.fabric.seed import capture_random, restore_random
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.fabric.strategies.parallel import ParallelStrategy

StartMethod = Literal["spawn", "fork", "forkserver"]


class ProcessLauncher(Launcher):
    """Runs a function in one new process for each device of this machine, and brings back what rank 0 returned.

    A forked process uses one thread, as the threads of OpenMP do not survive a fork and would be waited for.

    Args:
        strategy: Is told which process it is in.
        start_method: "spawn", "fork" or "forkserver"; of these only a fork works in a notebook.

    Attributes:
        procs: The processes that were started.
    """

    def __init__(self, strategy: ParallelStrategy, start_method: StartMethod = "spawn") -> None:
        if start_method not in mp.get_all_start_methods():
            raise ValueError(
                f"start_method={start_method!r} is not known on this machine. Type one of:"
                f" {', '.join(mp.get_all_start_methods())}"
            )
        self.strategy, self.start_method = strategy, start_method
        self.procs: list[Any] = []
        self._has_fitted = False

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook or an interactive interpreter."""
        return self.start_method == "fork"

    @property
    def runs_here(self) -> bool:
        """No: what the function leaves behind is in other processes."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Run the function in all processes, wait for them, and return what it returned on rank 0.

        Raises:
            NotImplementedError: A second fit of the same Trainer, of which this process has only a part of the state.
            RuntimeError: A fork after CUDA was initialised; or processes that are spawned while this one, which was
                spawned itself, still imports the script.
        """
        self._check()
        if trainer is not None:
            self._connect(trainer, args)
        with tempfile.TemporaryDirectory(prefix="fulmen-") as folder:
            work = _Work(self, function, args, kwargs, trainer, os.path.join(folder, "result"))
            self._run(work)
            if not os.path.exists(work.path):
                sys.exit(0)  # as they did
            result, extra = torch.load(work.path, weights_only=False)
        if trainer is not None:
            self.update_main_process_results(trainer, extra)
        return result

    def kill(self, signum: int) -> None:
        """Send a signal to the processes that were started here."""
        for process in self.procs:
            if process.is_alive() and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    def _check(self) -> None:
        if self.start_method == "fork" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise RuntimeError(
                "CUDA is initialised in this process, and does not survive a fork. Touch no CUDA device before this"
                " point (in a notebook: restart it), or put the code into a script and type: strategy='ddp'"
            )
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise RuntimeError(
                "A spawned process imports the script first, and would launch again. Put what the script does into a"
                ' function `main`, and type:\n    if __name__ == "__main__":\n        main()'
            )

    def _connect(self, trainer: Any, args: tuple[Any, ...]) -> None:
        """Let the Trainer of this process know the module, which it runs in others only.

        Args:
            trainer: The Trainer.
            args: Of `Trainer._run`.
        """
        module = next(arg for arg in args if isinstance(arg, nn.Module))
        is_fit = args[0] == "fit"
        if is_fit and self._has_fitted:
            raise NotImplementedError(
                "`fit` ran in processes that have ended, and this one has only a part of their state. Make a new"
                " Trainer (with `ckpt_path` it goes on where this one stood), or type: strategy='ddp'"
            )
        self._has_fitted = self._has_fitted or is_fit
        trainer.strategy.connect(module)

    def _run(self, work: _Work) -> None:
        """Starts the processes, and raises what was raised in the first that failed."""
        number = self.strategy.num_processes
        try:
            context = start_processes(work, nprocs=number, start_method=self.start_method, join=False)  # type: ignore[no-untyped-call]
        except (AttributeError, TypeError, ValueError, pickle.PicklingError) as error:
            if self.start_method != "fork":
                error.add_note(
                    "What goes to a spawned process has to be pickled: module, data, callbacks, loggers. Move what"
                    " cannot be (a lambda, a local function or class, an open file) to the top level of a file or into"
                    " `setup`, or type: strategy='ddp'"
                )
            raise
        assert context is not None
        self.procs = context.processes
        while not context.join():
            pass

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the processes, which are of this one only."""
        return self.__dict__ | {"procs": []}

    @staticmethod
    def get_extra_results(trainer: Any) -> dict[str, Any]:
        """What is brought back of the Trainer of rank 0: weights after a fit, metrics, state, the best checkpoint."""
        is_fit = trainer.state.fn == "fit"
        weights = trainer.strategy.lightning_module_state_dict() if is_fit else None
        return {
            "weights": None if weights is None else move(weights, torch.device("cpu")),
            "metrics": move(dict(trainer.callback_metrics), torch.device("cpu")),
            "state": trainer.state,
            "best_model_path": getattr(trainer.checkpoint_callback, "best_model_path", None),
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
    ) -> None:
        self.strategy, self.start_method = launcher.strategy, launcher.start_method
        self.function, self.args, self.kwargs, self.trainer = function, args, kwargs, trainer
        self.path, self.parent = path, os.getpid()
        environment = launcher.strategy.environment
        self.address, self.port = environment.main_address, environment.main_port
        self.settings = None if self.start_method == "fork" else _settings()

    def __call__(self, local_rank: int) -> None:
        """The process of a local rank begins here."""
        os.environ |= {
            PARENT_VARIABLE: str(self.parent),
            "LOCAL_RANK": str(local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }
        if self.settings is None:
            torch.set_num_threads(1)
        else:
            _set(self.settings)
            share_threads(self.strategy.num_processes)
        for module in _modules((self.args, self.kwargs)):
            _unshare(module)
        self.strategy.set_local_rank(local_rank)
        try:
            result = self.function(*self.args, **self.kwargs)
        except BaseException as error:
            explained = self.strategy.explain(error)
            if explained is error:
                raise
            raise explained from None
        if local_rank == 0:
            extra = {} if self.trainer is None else ProcessLauncher.get_extra_results(self.trainer)
            torch.save((move(result, torch.device("cpu")), extra), self.path)


def _modules(given: Any) -> Iterator[nn.Module]:
    if isinstance(given, nn.Module):
        yield given
    elif isinstance(given, dict):
        for value in given.values():
            yield from _modules(value)
    elif isinstance(given, (list, tuple)):
        for value in given:
            yield from _modules(value)


def _unshare(module: nn.Module) -> None:
    """Give a module memory of its own: torch hands tensors to other processes in memory that they share.

    Also what is no parameter, such as the sums of a metric. Tensors that shared memory among them still do.
    """
    own: dict[int, torch.UntypedStorage] = {}
    for part in module.modules():
        values = [*vars(part).values(), *part._parameters.values(), *part._buffers.values()]
        for tensor in values:
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.untyped_storage().is_shared():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    own[storage.data_ptr()] = torch.UntypedStorage(storage.nbytes()).copy_(storage)  # type: ignore[no-untyped-call]
                copy = own[storage.data_ptr()]
                place = tensor.storage_offset(), tensor.size(), tensor.stride()
                tensor.data = torch.empty(0, dtype=tensor.dtype).set_(copy, *place)


def _settings() -> dict[str, Any]:
    """Settings of torch and random states that a spawned process would not have."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "random": capture_random(),
    }


def _set(settings: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.backends.cudnn.deterministic = settings["cudnn_deterministic"]
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    torch.set_float32_matmul_precision(settings["float32_matmul_precision"])
    restore_random(settings["random"])
