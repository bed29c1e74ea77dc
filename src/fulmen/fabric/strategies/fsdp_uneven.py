"""Steps for which only some processes have a batch, though all have to gather the parameters of sharded modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

__all__ = ["Units"]

_END_OF_STEP = -1


class Units:
    """The modules within one that `fully_shard` was called on.

    Args:
        module: The module around them, or one of them.
    """

    def __init__(self, module: nn.Module) -> None:
        named = [(name, part) for name, part in module.named_modules() if isinstance(part, FSDPModule)]
        self.parts: list[Any] = [part for _, part in named]
        self._names = [name or type(part).__name__ for name, part in named]
        inner = {child for part in self.parts for child in list(part.modules())[1:]}
        self.roots: list[FSDPModule] = [part for part in self.parts if part not in inner]

    def reshard(self) -> None:
        """Give all gathered parameters back."""
        for part in self.parts:
            part.reshard()

    def run_once(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that uses units and computes no gradients: afterwards all parameters are shards again."""
        output = function(*args, **kwargs)
        self.reshard()
        return output

    def follow(self, leader: int, device: torch.device) -> None:
        """Take part in a step of others: gather what they gather, in their order, until it has ended.

        Args:
            leader: The rank that tells the order.
            device: Of this process.
        """
        self._initialise()
        self.reshard()
        while (index := _told(_END_OF_STEP, leader, device)) != _END_OF_STEP:
            self.parts[index].unshard()
            self.parts[index].reshard()

    @contextmanager
    def lead(self, leader: int, device: torch.device) -> Iterator[None]:
        """Context of a step in which those who follow are told what is gathered.

        Args:
            leader: The rank that tells; on other ranks that run a step this checks that they gather the same.
            device: Of this process.
        """

        def gather(index: int) -> None:
            self.parts[index].reshard()  # so that it is gathered again, as the followers will do
            self._check(index, _told(index, leader, device))
            self.parts[index].unshard()

        def before(index: int) -> Callable[..., None]:
            return lambda module, arguments: None if self.is_gathered(self.parts[index]) else gather(index)

        self._initialise()
        self.reshard()
        handles = [part.register_forward_pre_hook(before(index), prepend=True) for index, part in enumerate(self.parts)]
        try:
            self.begin(gather)
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._check(_END_OF_STEP, _told(_END_OF_STEP, leader, device))

    def is_gathered(self, part: FSDPModule) -> bool:
        """Whether the parameters of a unit are there already when it is called."""
        return False

    def begin(self, gather: Callable[[int], None]) -> None:
        """Gather what a step needs beside the units it calls; `gather` takes the number of a unit in `parts`."""

    def _initialise(self) -> None:
        for root in self.roots:
            state: Any = root._get_fsdp_state()
            state._lazy_init()

    def _check(self, index: int, told: int) -> None:
        if told != index:
            raise RuntimeError(
                f"In this step the processes do not run the same sharded modules: others are at {self._name(told)},"
                f" rank {dist.get_rank()} at {self._name(index)}. Evaluate without conditions that differ between"
                " processes, or with as many batches on each."
            )

    def _name(self, index: int) -> str:
        return "its end" if index == _END_OF_STEP else self._names[index]


def _told(index: int, leader: int, device: torch.device) -> int:
    told = torch.tensor(index, device=device)
    dist.broadcast(told, leader)
    return int(told)
