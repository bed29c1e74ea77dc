"""Samplers for several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, DistributedSampler, Sampler

__all__ = ["DistributedSamplerWrapper", "SamplerAsDataset"]


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
