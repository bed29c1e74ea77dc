"""Which of the processes this is, and how they talk to each other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.strategies import Strategy

__all__ = ["Processes", "map_numbers"]


class Processes:
    """Ranks and collectives of a `Fabric`, all of them those of its strategy."""

    _strategy: Strategy

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

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here."""
        self._strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object of the process of rank `src`."""
        return self._strategy.broadcast(obj, src)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensors (or numbers) of all processes, along a new first dimension where there are several.

        Args:
            data: Any nesting of tensors and numbers.
            group: Which processes; None for all.
            sync_grads: Whether gradients flow back.
        """
        return map_numbers(lambda tensor: self._strategy.all_gather(tensor, group, sync_grads), data, self.device)

    def all_reduce(self, data: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean, or another reduction, of the tensors (or numbers) over all processes.

        Args:
            data: Any nesting of tensors and numbers.
            group: Which processes; None for all.
            reduce_op: "mean", "sum", ...
        """
        return map_numbers(lambda tensor: self._strategy.reduce(tensor, group, reduce_op), data, self.device)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Generator[None]:
        """Context that rank 0 passes before all others enter it; for downloads.

        Args:
            local: Whether rank 0 of each node is meant.
        """
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
