"""Sources: how a single loader gives its batches.

| loader | how |
|---|---|
| `DataLoader` over a `TensorDataset` or subsets of one, default collate, no workers | the vectorised fetch |
| other map-style `DataLoader` | torch's own iterator, with indices that can start in the middle |
| iterable-style, with its own `__iter__` or its own state, or no `DataLoader` | the loader's own iterator |

All give the same batches in the same order, from the same random numbers, as `for batch in loader`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import ceil, inf
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from fulmen.data.fetch import vectorised
from fulmen.data.loaders import copy_with, is_stateful, length_of, samples_in, seeded_workers, shut_down
from fulmen.data.position import (
    IndexBatches,
    Position,
    capture_order,
    generators_of,
    redraw,
    set_generators,
    undisturbed,
)
from fulmen.data.shard import left_after, replicas_of, total_of
from fulmen.errors import PossibleUserWarning
from fulmen.ranks import rank_zero_warn

__all__ = ["IndexedSource", "Source", "StreamSource", "source_of"]


class Source(Iterable[Any]):
    """What a feed draws one loader's batches from; iterating it is one pass over the loader.

    The order is drawn when the iterator is made, not with the first batch.

    Args:
        loader: The user's loader.

    Attributes:
        replicas: Among how many ranks the loader's sampler shares the data out.
        batches: Batches given in this pass, by all of these ranks.
        exhaustible: Whether asking for a batch after the last one only ends the pass, without loading anything.
        batch_indices: Which samples of the dataset are in the batch given last; None if that is not recorded, or not
            known.
    """

    exhaustible = True

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.length = length_of(loader)
        self.replicas = replicas_of(loader)
        self.batches = 0
        self.batch_indices: list[int] | None = None
        self._counted = 0
        self._earlier_samples = 0
        self._order: dict[str, Any] | None = None
        self._resume: Position | None = None
        self._had_workers = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        position, self._resume = self._resume, None
        self._restart_workers(position)
        if position is None or (position.order is None and not position.batches):
            self._earlier_samples += self.samples
            self._order = self._capture_order()
            return self._begin(Position())
        self._earlier_samples = position.earlier_samples
        self._order = position.order or self._capture_order()
        with redraw(self.loader, position):
            return self._begin(position)

    @property
    def samples(self) -> int:
        """Samples given in this pass; batches of unknown size are not counted."""
        return self._counted

    @property
    def epoch_samples(self) -> int:
        """Samples given in this epoch, also in passes before this one."""
        if self._resume is not None:
            return self._resume.earlier_samples + self._resume.samples
        return self._earlier_samples + self.samples

    @property
    def remaining(self) -> int | float:
        """Number of batches that the next pass will give; inf if unknown."""
        return self.length - (0 if self._resume is None else self._resume.batches // self.replicas)

    def _capture_order(self) -> dict[str, Any]:
        return capture_order(self.loader) | {"workers": self._has_workers()}

    @property
    def _keeps_workers(self) -> bool:
        """Whether workers stay from pass to pass; those of a loader with its own state start with that state."""
        loader = self.loader
        return isinstance(loader, DataLoader) and loader.persistent_workers and not is_stateful(loader)

    def _has_workers(self) -> bool:
        """Whether workers of an earlier pass are alive."""
        return self._keeps_workers and self.loader._iterator is not None

    def _restart_workers(self, position: Position | None) -> None:
        """Start the workers that were alive in an interrupted run.

        Persistent workers get their seed when they start. A pass that found them alive drew none, so the pass that
        takes its place must not either.
        """
        were_alive, self._had_workers = self._had_workers, False
        if position is not None and position.order is not None:
            were_alive = position.order.get("workers", False)
        if were_alive and not self._has_workers():
            with undisturbed(self.loader):
                self._start_workers()

    def _start_workers(self) -> None:
        iter(self.loader)

    def rewind(self) -> None:
        """Forget where the pass stands: the next one is the first of an epoch."""
        self.batches = self._counted = self._earlier_samples = 0
        self._order = self._resume = None

    def continue_from(self, position: Position) -> None:
        """Let the next pass go on at `position`; a loader and generators with a state get theirs at once."""
        self._resume = position
        self._had_workers = position.order is not None and self._keeps_workers
        set_generators(generators_of(self.loader), position.generators)
        if position.loader is not None and is_stateful(self.loader):
            self.loader.load_state_dict(position.loader)

    def position(self) -> Position:
        """Where the pass stands."""
        if self._resume is not None:
            return self._resume
        return Position(
            batches=self.batches,
            samples=self.samples,
            earlier_samples=self._earlier_samples,
            order=self._order,
            generators=[generator.get_state() for generator in generators_of(self.loader)],
            loader=self.loader.state_dict() if is_stateful(self.loader) else None,
        )

    def record_indices(self) -> None:
        """Let the passes, of which there has been none yet, tell `batch_indices` where they can be known."""

    def close(self) -> None:
        """End the loader's workers."""
        shut_down(self.loader)

    def _begin(self, position: Position) -> Iterator[Any]:
        raise NotImplementedError

    def _given(self, iterator: Iterator[Any], size_of: Callable[[Any], int | None] | None) -> Iterator[Any]:
        """The batches of `iterator`, counted; `size_of` is None where samples need no counting."""
        replicas = self.replicas
        for batch in iterator:
            self.batches += replicas
            if size_of is not None:
                self._counted += replicas * (size_of(batch) or 0)
            yield batch


class StreamSource(Source):
    """A loader whose order is its own affair: it can only be read from the start, unless it keeps its own state."""

    def __init__(self, loader: Any) -> None:
        if isinstance(loader, DataLoader) and (seeded := seeded_workers(loader)):
            loader = copy_with(loader, **seeded)
        super().__init__(loader)
        self.exhaustible = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)

    def _begin(self, position: Position) -> Iterator[Any]:
        iterator = iter(self.loader)
        if position.batches and (position.loader is None or not is_stateful(self.loader)):
            self._discard(iterator, position.batches // self.replicas)
        self.batches, self._counted = position.batches, position.samples
        return self._given(iterator, samples_in)

    def _discard(self, iterator: Iterator[Any], count: int) -> None:
        rank_zero_warn(
            f"To continue in the middle of the epoch, {count} batches of {type(self.loader).__name__} are loaded and "
            "thrown away, which takes as long as loading them took before the interruption, and gives the same data "
            "only if the loader always has the same order. To continue at once give the loader the methods "
            "`state_dict()` and `load_state_dict(state)`, or use a map-style dataset.",
            category=PossibleUserWarning,
            stacklevel=5,
        )
        for _ in range(count):
            next(iterator, None)


class IndexedSource(Source):
    """A `DataLoader` over a map-style dataset: its samplers say what comes, so what was consumed can be left out."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._persistent: tuple[DataLoader[Any], IndexBatches] | None = None
        self._records = False
        self._begun_at = Position()

    @property
    def samples(self) -> int:
        """Samples given in this pass; batches of unknown size are not counted."""
        regular = self._regular()
        if regular is None:
            return self._counted
        batch_size, num_samples = regular
        given = (self.batches - self._begun_at.batches) * batch_size
        return min(self._begun_at.samples + given, num_samples)

    @property
    def remaining(self) -> int | float:
        """Number of batches that the next pass will give, also if the batch size was changed since the position."""
        if self._resume is None or not self._resume.batches:
            return self.length
        batch_sampler: Any = self.loader.batch_sampler
        if self._regular() is None:
            sampler = self.loader.sampler if batch_sampler is None else batch_sampler
            return inf if self.length == inf else left_after(sampler, self._resume.batches, self.replicas)
        batches = left_after(batch_sampler.sampler, self._resume.samples, self.replicas) / batch_sampler.batch_size
        return int(batches) if batch_sampler.drop_last else ceil(batches)

    def continue_from(self, position: Position) -> None:
        """Let the next pass go on at `position`; where it does not say how many samples that is, its batches do."""
        if not position.samples and (regular := self._regular()) is not None:
            batch_size, num_samples = regular
            position.samples = min(position.batches * batch_size, num_samples)
        super().continue_from(position)

    def rewind(self) -> None:
        """Forget where the pass stands: the next one is the first of an epoch."""
        super().rewind()
        self._begun_at = Position()

    def record_indices(self) -> None:
        """Let the passes, of which there has been none yet, tell `batch_indices`."""
        # not known: samples that are batches of their own making, and batches that come as soon as they are ready
        self._records = self.loader.batch_sampler is not None and getattr(self.loader, "in_order", True)

    def close(self) -> None:
        """End the workers; those the user started with the loader are left alone."""
        if self._persistent is not None:
            shut_down(self._persistent[0])
            self._persistent = None

    def _has_workers(self) -> bool:
        return self._persistent is not None

    def _start_workers(self) -> None:
        loader, indices = self._stand_in()
        indices.idle = True
        iter(loader)
        indices.idle = False

    def _regular(self) -> tuple[int, int] | None:
        """Batch size and number of samples for all ranks, where all batches but the last have the same size."""
        batch_sampler = self.loader.batch_sampler
        if type(batch_sampler) is not BatchSampler:
            return None
        if length_of(batch_sampler.sampler) == inf:
            return None
        return batch_sampler.batch_size, total_of(batch_sampler.sampler, self.replicas)

    def _begin(self, position: Position) -> Iterator[Any]:
        self._begun_at = position
        self.batches, self._counted = position.batches, position.samples
        loader, indices = self._stand_in()
        indices.position = position
        iterator = vectorised(self.loader, indices)
        if iterator is None:
            iterator = iter(loader)
            if not loader.num_workers:
                next(indices.stream)
        return self._given(iterator, self._size_of(indices))

    def _stand_in(self) -> tuple[DataLoader[Any], IndexBatches]:
        """A copy of the loader with our indices in place of its sampler; always the same one if workers persist."""
        if self._persistent is not None:
            return self._persistent
        loader: DataLoader[Any] = self.loader
        batched = loader.batch_sampler is not None
        indices = IndexBatches(loader, pause=not loader.num_workers, keep=self._what_to_keep())
        sampler = {"batch_sampler" if batched else "sampler": indices}
        stand_in = copy_with(loader, **sampler, **seeded_workers(loader))
        if loader.persistent_workers:
            self._persistent = stand_in, indices
        return stand_in, indices

    def _what_to_keep(self) -> Callable[[Any], Any] | None:
        if self._records:
            return list
        return len if self.loader.batch_sampler is not None and self._regular() is None else None

    def _size_of(self, indices: IndexBatches) -> Callable[[Any], int | None] | None:
        kept = indices.kept
        if kept is None:
            return samples_in if self._regular() is None else None
        return lambda batch: self._take_indices(kept) if self._records else kept.popleft()

    def _take_indices(self, kept: deque[list[int]]) -> int:
        self.batch_indices = kept.popleft()
        return len(self.batch_indices)


def source_of(loader: Any) -> Source:
    """The source that fits the loader."""
    return IndexedSource(loader) if _is_indexed(loader) else StreamSource(loader)


def _is_indexed(loader: Any) -> bool:
    """Whether this is a map-style `DataLoader` that iterates as torch's own does."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and not is_stateful(loader)
        and all(
            getattr(type(loader), name) is getattr(DataLoader, name)
            for name in ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")
        )
    )
