"""Which of the processes this is, how they are started, and how they talk to each other."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.strategies import Strategy

__all__ = ["Processes", "is_using_cli", "map_numbers"]


def _do_nothing(fabric: Processes) -> None:
    """What `launch` runs when it is given no function."""


def _run_of_class(fabric: Processes, *args: Any, **kwargs: Any) -> Any:
    """The `run` that a subclass has overridden: that of the object launches."""
    return type(fabric).run(fabric, *args, **kwargs)


def is_using_cli() -> bool:
    """Whether the command line has started the processes."""
    return os.environ.get("LT_CLI_USED", "0") == "1"


class Processes:
    """Launch, ranks and collectives of a `Fabric`, all of them those of its strategy.

    The collectives need the processes: on several devices `launch` comes first.
    """

    _strategy: Strategy
    _is_launched: bool

    def _prepare_processes(self) -> None:
        """Meet the others where nothing has to be launched, and let an overridden `run` launch."""
        self._reports_uncaught = False
        self._is_launched = self._strategy.launcher is None or is_using_cli()
        if self._is_launched:
            self._strategy.setup_environment()
            if is_using_cli():
                self._report_uncaught()
        if type(self).run is not Processes.run:
            if is_using_cli():
                raise TypeError(
                    f"`{type(self).__name__}` overrides `run`, which launches by itself, and was started by the command"
                    " line, which has launched already. Start the script with `python`, or do not override `run`."
                )
            self.run = self._run_launched  # type: ignore[method-assign]

    # Launch

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Override this with the code of a run; calling it then launches first. Returns what the override returns."""

    def _run_launched(self, *args: Any, **kwargs: Any) -> Any:
        return self.launch(_run_of_class, *args, **kwargs)

    def launch(self, function: Callable[..., Any] = _do_nothing, *args: Any, **kwargs: Any) -> Any:
        """Start the processes of the strategy, and run a function in them.

        On one device there is nothing to start. Where others have started the processes (torchrun, SLURM, ...) this one
        meets them here. Without a function, all processes run what follows in the script: with strategy="ddp" they run
        the script from its beginning. A spawned or forked process runs nothing but the function.

        When one process raises, all end, and the report on rank 0 says who was the first, and where the others stood.

        Args:
            function: Gets this object first, then `*args` and `**kwargs`.

        Returns:
            What the function returned; where its processes were spawned or forked, what it returned on rank 0.

        Raises:
            TypeError: Not callable, or callable without an argument; no function for processes that are spawned or
                forked.
            RuntimeError: The command line has launched already.
        """
        if is_using_cli():
            raise RuntimeError(
                "This script was started by the command line, which has launched its processes already. "
                "Remove the call of `fabric.launch`."
            )
        if not callable(function):
            raise TypeError(
                f"`launch` needs a function, got {function!r}. Type `fabric.launch(fn)`, not `fabric.launch(fn())`."
            )
        if not inspect.signature(function).parameters:
            name = getattr(function, "__name__", repr(function))
            raise TypeError(f"`{name}` has to take at least one argument: `launch` gives it the Fabric object first.")
        launcher = self._strategy.launcher
        if launcher is None:
            return function(self, *args, **kwargs)
        if function is _do_nothing and not launcher.runs_here:
            raise TypeError(
                f"The processes of {type(self._strategy).__name__} are spawned or forked, and run nothing but a"
                " function: put the code into one that takes the Fabric object, and type: fabric.launch(function)"
            )
        if self._is_launched:
            return self._run_here(function, args, kwargs)
        return launcher.launch(self._run_here, function, args, kwargs)

    def _run_here(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `launch` does in each of the processes."""
        self._strategy.setup_environment()
        self._is_launched = True
        if function is _do_nothing:
            self._report_uncaught()
            return None
        try:
            return function(self, *args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            explained = self._strategy.explain(error)
            if explained is not error:
                raise explained from None
            raise

    def _report_uncaught(self) -> None:
        if not self._reports_uncaught:
            self._reports_uncaught = True
            _report_uncaught(self._strategy)

    def _require_launch(self) -> None:
        """Refuse what needs the other processes before they exist."""
        if not self._is_launched:
            is_script = self._strategy.launcher.runs_here
            call = "fabric.launch()" if is_script else "fabric.launch(function), where the function holds what follows"
            raise RuntimeError(
                f"{type(self._strategy).__name__} works with several processes, and they have not been started. Type"
                f" before this line: {call}"
            )

    # Ranks

    @property
    def strategy(self) -> Strategy:
        """How modules are spread over the devices."""
        return self._strategy

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._strategy.root_device

    @property
    def global_rank(self) -> int:
        """Rank of this process among all."""
        return self._strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Rank of this process on its node."""
        return self._strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Rank of this node."""
        return self._strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes on all nodes."""
        return self._strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self._strategy.is_global_zero

    # Collectives

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here.

        Args:
            name: What for, in reports of processes that do not come.

        Raises:
            RuntimeError: Several devices, and the processes have not been launched; as in all collectives.
        """
        self._require_launch()
        self._strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object of the process of rank `src`.

        Args:
            obj: Anything that can be pickled; what the other processes give is not looked at.
            src: Whose object.
        """
        self._require_launch()
        return self._strategy.broadcast(obj, src)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensors (or numbers) of all processes, along a new first dimension where there are several.

        Args:
            data: Any nesting of tensors and numbers.
            group: Which processes; None for all.
            sync_grads: Whether gradients flow back to the processes the tensors came from.
        """
        self._require_launch()
        return map_numbers(lambda tensor: self._strategy.all_gather(tensor, group, sync_grads), data, self.device)

    def all_reduce(self, data: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean, or another reduction, of the tensors (or numbers) over all processes.

        Args:
            data: Any nesting of tensors and numbers.
            group: Which processes; None for all.
            reduce_op: "mean", "sum", "min", "max", "product", or a `torch.distributed.ReduceOp`.

        Returns:
            The same nesting of new tensors: those given are not changed.
        """
        self._require_launch()
        return map_numbers(lambda tensor: self._strategy.all_reduce(tensor, group, reduce_op), data, self.device)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Generator[None]:
        """Context that rank 0 passes before all others enter it; for downloads.

        Args:
            local: Whether rank 0 of each node is meant.
        """
        self._require_launch()
        rank = self.local_rank if local else self.global_rank
        if rank > 0:
            self.barrier()
        yield
        if rank == 0:
            self.barrier()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """`print`, on one process per node."""
        if self.local_rank == 0:
            print(*args, **kwargs)


def _report_uncaught(strategy: Strategy) -> None:
    """From here on the other processes hear of an exception that ends the program here, and the report tells all.

    Args:
        strategy: Knows the cause of an exception that only follows from that of another process.
    """
    before = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        sys.excepthook = before
        explained = strategy.explain(error)
        sys.excepthook(type(explained), explained, explained.__traceback__)

    sys.excepthook = explain


def map_numbers(fn: Callable[[Tensor], Any], data: Any, device: torch.device) -> Any:
    """Apply `fn` to all tensors of a nesting, and to its numbers as tensors."""
    if isinstance(data, Tensor):
        return fn(data.to(device))
    if isinstance(data, (bool, int, float)):
        return fn(torch.tensor(data, device=device))
    if isinstance(data, Mapping):
        return {key: map_numbers(fn, value, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        items = [map_numbers(fn, value, device) for value in data]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    return data
