"""What a loop draws from: loaders, a limit, and a position that can be saved.

```python
feed = Feed(loader, limit=0.5)
for epoch in range(10):
    for batch in feed.start(epoch):
        ...
```
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from fulmen.data.combined import CombinedLoader, combined_length, flatten, map_leaves
from fulmen.data.fetch import table_of
from fulmen.data.loaders import hint_shuffle, hint_workers, is_stateful, sequential_copy, set_epoch
from fulmen.data.position import Position
from fulmen.data.shard import shard_of
from fulmen.data.source import source_of
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_warn

__all__ = ["Feed", "is_combined", "limited_length", "without_shuffle"]

_END = object()


def is_combined(loaders: Any) -> bool:
    """Whether the user combined the loaders, and so chose how they are drawn from."""
    return isinstance(loaders, CombinedLoader)


def without_shuffle(loaders: Any) -> Any:
    """The same collection with loaders that go through their dataset in order, for overfitting a few batches.

    Returns:
        A new collection; loaders in which nothing had to change are the user's own.

    Warns:
        UserWarning: A sampler was replaced.
    """
    leaves = flatten(loaders)
    in_order = list(map(sequential_copy, leaves))
    if all(new is old for new, old in zip(in_order, leaves, strict=True)):
        return loaders
    rank_zero_warn(
        "`overfit_batches` needs the same batches in every epoch, so the samplers that shuffle or choose are replaced "
        "by sequential ones. Use `DataLoader(..., shuffle=False)` to have it so from the start.",
        stacklevel=5,
    )
    copies = iter(in_order)
    return map_leaves(lambda _: next(copies), loaders)


def limited_length(
    length: int | float, limit: int | float | None, name: str, argument: str | None = None
) -> int | float:
    """Number of batches that `limit` leaves of a loader.

    Args:
        length: Batches of the loader; inf if unknown.
        limit: An integer (or a whole float above 1) is a number of batches, a float in [0, 1] a fraction, None all.
        name: "train", "val", "test" or "predict", for the messages.
        argument: The argument that the user gave the limit by; None: `limit_<name>_batches`.

    Raises:
        MisconfigurationException: The limit is neither; or a fraction of an unknown length; or a fraction that leaves
            nothing.
    """
    argument = argument or f"limit_{name}_batches"
    if limit is None:
        return length
    if isinstance(limit, float) and limit > 1 and limit.is_integer():
        limit = int(limit)
    if not isinstance(limit, (int, float)) or limit < 0 or (isinstance(limit, float) and not limit <= 1):
        raise MisconfigurationException(
            f"`{argument}={limit!r}` is not possible: give a number of batches (an int from 0 on) or a fraction of the "
            f"loader (a float from 0.0 to 1.0), for instance `{argument}=10` or `{argument}=0.1`.",
            subject=limit,
        )
    if isinstance(limit, int):
        return min(length, limit)
    if limit in (0.0, 1.0):
        return length if limit else 0
    if length == inf:
        raise MisconfigurationException(
            f"`{argument}={limit}` is a fraction, but the {name} loader does not know its length. Give a number of "
            f"batches, for instance `{argument}=10`, or give the dataset or loader a `__len__`.",
            subject=limit,
        )
    if length and not int(length * limit):
        raise MisconfigurationException(
            f"The {name} loader is too short: `{argument}={limit}` of {length} batches leaves none. Give at least "
            f"`{argument}={ceil(10_000 / length) / 10_000}`, or a number of batches: `{argument}=1`.",
            subject=limit,
        )
    return int(length * limit)


@dataclass(frozen=True)
class _Mark:
    """Where a feed stood before it looked ahead."""

    samples: int
    indices: list[int] | None
    positions: list[Position]
    combined: dict[str, Any]


class Feed:
    """Draws batches from one loader, or a collection of them, in epochs.

    Args:
        loaders: A `DataLoader`, any iterable, a `CombinedLoader`, or any nesting of dicts, lists and tuples of these.
        limit: Most batches of an epoch, for each loader: an int, or a fraction of its length as a float.
        transfer: Called as `transfer(batch, dataloader_idx)` when a batch is given; its result is given instead.
        mode: How several loaders are combined (see `CombinedLoader`); one the user made has its own mode.
        name: "train", "val", "test" or "predict", for messages.
        limited_by: The argument that the user gave the limit by, for messages; None: `limit_<name>_batches`.
        sum_over_ranks: Sums an integer over all ranks; None where there is one process.
        allow_zero_length: Whether the loader of a rank may be empty when those of others are not.
        reloading: Whether the loaders are replaced every few epochs.

    Attributes:
        loaders: The user's collection.
        num_batches: Batches of an epoch under the limit; inf if unknown.
        is_last: Whether the last batch of the epoch has been given.
        batches: Batches given in this epoch.
        epoch: The epoch under way; -1 before the first.

    Raises:
        TypeError: A loader cannot be iterated.
        MisconfigurationException: The limit does not fit.
        RuntimeError: The loader is empty on this rank only.
    """

    def __init__(
        self,
        loaders: Any,
        *,
        limit: int | float | None = 1.0,
        transfer: Callable[[Any, int], Any] | None = None,
        mode: str = "max_size_cycle",
        name: str = "train",
        limited_by: str | None = None,
        sum_over_ranks: Callable[[int], int] | None = None,
        allow_zero_length: bool = False,
        reloading: bool = False,
    ) -> None:
        self.loaders = loaders
        self.batches = 0
        self.epoch = -1
        self.is_last = False
        self._transfer = transfer
        leaves = flatten(loaders)
        for leaf in leaves:
            _check_iterable(leaf, name)
        self._sources = [source_of(leaf) for leaf in leaves]
        for source in self._sources:
            length, exchange = source.length, sum_over_ranks
            if (shard := shard_of(source.loader)) is not None:
                # known without asking; where each sample comes once, there may be too few for all ranks
                length, exchange = length if shard.even else len(shard.sampler), None
            check_length(source.loader, length, name, exchange, allow_zero_length)
            _hint(source.loader, name, reloading)
        if not leaves:
            rank_zero_warn(f"The collection of {name} loaders is empty: nothing will run. Is this intended?", 5)
        self._combined = None if len(leaves) == 1 and leaves[0] is loaders else self._combine(mode)
        if self._combined is not None:
            self._transfer = _taking_apart(transfer)
        self.num_batches = self._limited(limit, name, limited_by)
        # As a raw loop does, so that samplers and generators end in the same state. No other loader is asked for
        # more than its length: it might be a stream that goes on, and what it gave would be lost.
        self._draws_to_the_end = (
            self._combined is None and self._sources[0].exhaustible and self.num_batches == self._sources[0].length
        )
        self._resume_epoch: int | None = None
        self._mark: _Mark | None = None
        # not held: feed and generator would hold each other, and workers that the garbage collector has to end hang
        self._running: weakref.ref[Generator[Any, None, None]] | None = None

    def _combine(self, mode: str) -> CombinedLoader:
        """The sources, combined as the user's loaders are."""
        sources = iter(self._sources)
        combined = map_leaves(lambda _: next(sources), self.loaders)
        return combined if is_combined(combined) else CombinedLoader(combined, mode)

    def _limited(self, limit: int | float | None, name: str, argument: str | None) -> int | float:
        lengths = [limited_length(source.length, limit, name, argument) for source in self._sources]
        if self._combined is None:
            return lengths[0]
        if self._combined.limits is not None:
            lengths = list(map(min, lengths, self._combined.limits))
        # at once: the number of items is what is limited, and that is counted here
        self._combined.limits = lengths if self._combined.mode == "sequential" else None
        return combined_length(lengths, self._combined.mode)

    @property
    def has_length(self) -> bool:
        """Whether every loader knows its length; without it the end of an epoch shows only when it comes."""
        return all(source.length != inf for source in self._sources)

    @property
    def samples(self) -> int:
        """Samples given in this epoch, over all loaders; batches of unknown size are not counted.

        Where a sampler shares the data out among ranks, those of all ranks are counted.
        """
        if self._mark is not None:
            return self._mark.samples
        return sum(source.epoch_samples for source in self._sources)

    def record_indices(self) -> None:
        """Let `batch_indices` be known, where they can be. To be called before the first epoch of a single loader."""
        for source in self._sources:
            source.record_indices()

    @property
    def batch_indices(self) -> list[int] | None:
        """Which samples of the dataset are in the batch given last; None if not recorded, or not known."""
        return self._sources[0].batch_indices if self._mark is None else self._mark.indices

    def start(self, epoch: int) -> Iterator[Any]:
        """Begin an epoch, or go on in it if a position in this epoch was loaded.

        What is random about the order is drawn before this returns. Samplers with `set_epoch` are told.

        Args:
            epoch: Number of the epoch.

        Returns:
            An iterator over the batches of the epoch.
        """
        self._stop()
        resumes, self._resume_epoch = self._resume_epoch == epoch, None
        self.epoch = epoch
        for source in self._sources:
            set_epoch(source.loader, epoch)
        if not resumes:
            self._rewind()
        left = self._remaining()
        self.is_last = left <= 0
        if self.is_last:
            self._help_others()
            return iter(())
        iterator = iter(self._sources[0]) if self._combined is None else self._combined._begin()
        if any(source.length == inf for source in self._sources):
            running = self._looking_ahead(iterator, left)
        else:
            running = self._counting(iterator, int(left))
        self._running = weakref.ref(running)
        return running

    def _rewind(self) -> None:
        self.batches = 0
        for source in self._sources:
            source.rewind()
        if self._combined is not None:
            self._combined._continue_from({})

    def _remaining(self) -> int | float:
        """How many batches are left; of another batch size or number of ranks than before it is another number."""
        if (
            not self.batches
            or not self.has_length
            or (self._combined is not None and self._combined.mode == "sequential")
        ):
            return self.num_batches - self.batches
        done = [False] * len(self._sources)
        if self._combined is None:
            mode = "min_size"
        else:
            mode = self._combined.mode
            done = self._combined._resume.get("exhausted", done)
        left = [source.remaining for source, is_done in zip(self._sources, done, strict=True) if not is_done]
        whole = combined_length([source.length for source in self._sources], mode)
        return combined_length(left, mode) - (whole - self.num_batches)

    def _help_others(self) -> None:
        """Draw the order of a loader that has nothing for this rank, with the ranks for which it has something."""
        for source in self._sources:
            shard = shard_of(source.loader)
            if shard is not None and not shard.even and not source.length:
                next(iter(source), None)

    def _counting(self, iterator: Iterator[Any], left: int) -> Generator[Any, None, None]:
        """The batches of an epoch of known length."""
        transfer = self._transfer
        for batch in itertools.islice(iterator, left):
            self.batches += 1
            left -= 1
            if not left:
                self.is_last = True
                if self._draws_to_the_end:
                    next(iterator, None)
            yield batch if transfer is None else transfer(batch, 0)
        self.is_last = True

    def _looking_ahead(self, iterator: Iterator[Any], left: int | float) -> Generator[Any, None, None]:
        """The batches of an epoch whose end shows only when there are no more."""
        transfer = self._transfer
        upcoming = next(iterator, _END)
        while upcoming is not _END:
            batch = upcoming
            self.batches += 1
            left -= 1
            if left > 0:
                self._mark = self._mark_here()
                upcoming = next(iterator, _END)
            else:
                self._mark, upcoming = None, _END
            self.is_last = upcoming is _END
            yield batch if transfer is None else transfer(batch, 0)
        self._mark = None
        self.is_last = True

    def _mark_here(self) -> _Mark:
        return _Mark(
            samples=sum(source.epoch_samples for source in self._sources),
            indices=self._sources[0].batch_indices,
            positions=[source.position() for source in self._sources],
            combined={} if self._combined is None else self._combined._position(),
        )

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        """The position in plain types: the epoch, what was given of it, and where each loader stands.

        Args:
            used: Batches of this epoch that were used. If it is one less than those given, an exception came in between
                and the last one is to be given again, which is possible with a single loader that keeps no state.
        """
        mark = self._mark or self._mark_here()
        if used == self.batches - 1 and self._can_take_back:
            mark = _Mark(mark.samples, None, [mark.positions[0].one_before(self._sources[0].replicas)], {})
        else:
            used = self.batches
        return {
            "epoch": self.epoch,
            "batches": used,
            "samples": mark.samples,
            "combined": mark.combined,
            "loaders": [position.state_dict() for position in mark.positions],
        }

    @property
    def _can_take_back(self) -> bool:
        return self._combined is None and self._sources[0].position().loader is None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `start` of the epoch in `state` go on after the batches that were given.

        The generators of the user's samplers and loaders that keep their own state get theirs at once. Only "epoch"
        and "batches" have to be there; without the rest the order is drawn anew.

        Args:
            state: What `state_dict` returned.

        Raises:
            RuntimeError: The state is one of another number of loaders.
        """
        self._stop()
        self._rewind()
        loaders = state.get("loaders") or self._without_order(state["batches"], state.get("loader_states"))
        if len(loaders) != len(self._sources):
            raise RuntimeError(
                f"The position in the data is one of {len(loaders)} loaders, but there are {len(self._sources)} now. "
                "Give the loaders that were in use when the checkpoint was saved."
            )
        self.epoch = self._resume_epoch = state["epoch"]
        self.batches = state["batches"]
        if self._combined is not None:
            self._combined._continue_from(state.get("combined", {}))
        for source, loader_state in zip(self._sources, loaders, strict=True):
            position = Position()
            position.load_state_dict(loader_state)
            source.continue_from(position)

    def _without_order(self, batches: int, states: list[Any] | None) -> list[dict[str, Any]]:
        """The positions of loaders of which only the number of batches and, if they keep one, their state is known."""
        stateful = iter(states or ())
        return [
            {
                "batches": batches * source.replicas,
                "loader": next(stateful, None) if is_stateful(source.loader) else None,
            }
            for source in self._sources
        ]

    def continue_after(self, state: dict[str, Any]) -> None:
        """Let the next epoch begin as it would have after the one in `state`, which is over.

        The generators of the user's samplers get their state. Loaders with a state of their own start anew.

        Args:
            state: What `state_dict` returned; one of another number of loaders is passed over.
        """
        loaders = state.get("loaders", [])
        if len(loaders) == len(self._sources):
            for source, loader_state in zip(self._sources, loaders, strict=True):
                position = Position()
                position.load_state_dict({**loader_state, "loader": None})
                source.continue_from(position)
        self._rewind()

    def close(self) -> None:
        """End the epoch under way and the workers of the loaders."""
        self._stop()
        for source in self._sources:
            source.close()

    def _stop(self) -> None:
        """End what is left of the last epoch; an iterator that is dropped half-way takes its workers with it."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = self._mark = None
        if self._combined is not None:
            self._combined._cursor = None


def _taking_apart(transfer: Callable[[Any, int], Any] | None) -> Callable[[Any, int], Any]:
    """`transfer` for the items of a `CombinedLoader`."""

    def transfer_item(item: tuple[Any, int, int], _: int) -> Any:
        batch, _, dataloader_idx = item
        return batch if transfer is None else transfer(batch, dataloader_idx)

    return transfer_item


def _check_iterable(loader: Any, name: str) -> None:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(
            f"The {name} loader {loader!r} of type {type(loader).__name__} is not iterable. Give a "
            "`torch.utils.data.DataLoader(dataset, batch_size=32)`, any other iterable of batches, or a dict, list or "
            "tuple of these."
        )


def check_length(
    loader: Any,
    length: int | float,
    name: str,
    sum_over_ranks: Callable[[int], int] | None,
    allow_zero_length: bool,
) -> None:
    """Warn or raise where a loader, or those of all ranks together, have no batches.

    Args:
        loader: The loader.
        length: Its length on this rank; inf if that is not known.
        name: What it is for, "train".
        sum_over_ranks: Adds a number up over all ranks; None on a single one.
        allow_zero_length: Whether this rank may have none when others have some.

    Raises:
        RuntimeError: It has none, and must not.
    """
    # a length that is not known counts as 1: all that matters is whether it is zero, and all ranks have to ask
    local = 1 if length == inf else int(length)
    total = local if sum_over_ranks is None else sum_over_ranks(local)
    if total == 0:
        rank_zero_warn(f"The {name} loader has no batches on any rank: nothing will run. Is this intended?", 6)
    elif local == 0 and not allow_zero_length:
        raise RuntimeError(
            f"The {name} loader has no batches on this rank, but {total} on others, which would wait forever. Give "
            "each rank some, or set `allow_zero_length_dataloader_with_multiple_devices = True` in the module or "
            "data module."
        )
    elif local == 0:
        rank_zero_warn(f"The {name} loader has no batches on this rank, but {total} on others.", 6)
    if length != inf and isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        rank_zero_warn(
            f"The `IterableDataset` of the {name} loader has a `__len__`. With workers that do not share the data "
            "among them each sample comes once per worker, and the length is wrong.",
            6,
        )


def _hint(loader: Any, name: str, reloading: bool) -> None:
    if not isinstance(loader, DataLoader) or table_of(loader) is None:  # a vectorised fetch gains nothing from workers
        hint_workers(loader, name, reloading=reloading)
    if name != "train":
        hint_shuffle(loader, name)
