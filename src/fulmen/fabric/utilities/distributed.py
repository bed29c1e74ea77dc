"""Several processes: samplers, and whether they see the same files."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, DistributedSampler, Sampler

from fulmen.paths import is_url

if TYPE_CHECKING:
    from fulmen.fabric.strategies.base import Strategy

__all__ = ["DistributedSamplerWrapper", "SamplerAsDataset", "is_shared_filesystem"]

_SECONDS_BETWEEN_LOOKS = 0.05


def is_shared_filesystem(strategy: Strategy, path: str | Path | None = None, timeout: float = 3) -> bool:
    """Whether all processes see the same files below a folder. All of them have to ask.

    Rank 0 writes a file there, for which the others look; it is removed afterwards.

    Args:
        strategy: Through it the processes talk.
        path: The folder; None: the working directory. A URL is the same for everybody.
        timeout: Seconds to wait for the file, as a network may be slow to show it.
    """
    if strategy.world_size == 1 or (path is not None and is_url(path)):
        return True
    folder = Path.cwd() if path is None else Path(path)
    mark = folder / strategy.broadcast(f".fulmen_{secrets.token_hex(8)}")
    if strategy.is_global_zero:
        with suppress(OSError):  # then nobody finds it
            mark.touch()
    strategy.barrier("is_shared_filesystem")
    shared = strategy.reduce_boolean_decision(_appears(mark, timeout), all=True)
    if strategy.is_global_zero:
        with suppress(OSError):
            mark.unlink()
    return shared


def _appears(file: Path, timeout: float) -> bool:
    end = time.monotonic() + timeout
    while not file.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


class SamplerAsDataset(Dataset[Any]):
    """The indices that a sampler draws, as a dataset that another sampler can share out.

    Args:
        sampler: A sampler with a length.
    """

    def __init__(self, sampler: Sampler[Any] | Sequence[Any]) -> None:
        if not hasattr(sampler, "__len__"):
            raise TypeError(f"`{type(sampler).__name__}` has no length; to share its indices out, give it a `__len__`.")
        self.sampler = sampler
        self._indices: list[Any] = []

    def draw(self) -> None:
        """Draws the indices of an epoch."""
        self._indices = list(self.sampler)

    def __getitem__(self, index: int) -> Any:
        return self._indices[index]

    def __len__(self) -> int:
        return len(self.sampler)


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """Shares the indices of any sampler out among the processes.

    The sampler must draw the same indices on all of them; seed it alike.

    Args:
        sampler: The sampler.
        *args: Arguments of `DistributedSampler`, after the dataset.
        **kwargs: The same by name.
    """

    def __init__(self, sampler: Sampler[Any] | Sequence[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(SamplerAsDataset(sampler), *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        drawn: Any = self.dataset
        drawn.draw()
        return (drawn[index] for index in super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        """Tells this sampler, and the one inside if it wants to know, which epoch it is."""
        super().set_epoch(epoch)
        inner: Any = self.dataset
        if hasattr(inner.sampler, "set_epoch"):
            inner.sampler.set_epoch(epoch)
