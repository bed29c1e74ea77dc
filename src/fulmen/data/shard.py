"""Sharing data out among ranks, in the order in which one process would go through them.

With R ranks and batches of b samples on each, the k-th batches of all ranks together hold the samples from k R b to
(k + 1) R b of that order. Where it is drawn at random rank 0 decides: it draws as one process would, and tells the
others the seed or, where there is none to tell, the outcome. The other random numbers of a rank stay its own.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from fulmen.data.loaders import copy_with, is_random
from fulmen.errors import MisconfigurationException
from fulmen.fabric import distributed

__all__ = [
    "ShardSampler",
    "draws_from_torch",
    "items_after",
    "left_after",
    "refuse_uneven",
    "replicas_of",
    "shard_of",
    "sharded",
    "total_of",
]

_ORDER = "the order of the data"


class ShardSampler(DistributedSampler[Any]):
    """The share that one rank has of what another sampler, or batch sampler, gives.

    Of the items (indices, or lists of them) that the other gives, rank r of R gets those at r, r + R, r + 2R, ...
    All ranks have to iterate at the same time if the order is drawn at random.

    Args:
        sampler: The sampler of all items: what it gives on rank 0 is shared out.
        num_replicas: Number of ranks, R.
        rank: This one, r.
        even: Whether all ranks get the same number. What is missing for that is taken from the beginning; or, with
            `drop_last`, what is left over is dropped. If not, each item is given once.
        drop_last: See `even`.

    Raises:
        TypeError: The sampler has no length.
    """

    def __init__(self, sampler: Any, num_replicas: int, rank: int, *, even: bool = True, drop_last: bool = False):
        if not hasattr(sampler, "__len__"):
            raise TypeError(
                f"`{type(sampler).__name__}` has no length, so it cannot be shared out among {num_replicas} processes."
                " Give it a `__len__`, or share the data out yourself and type: use_distributed_sampler=False"
            )
        self.sampler = sampler
        super().__init__(sampler, num_replicas, rank, is_random(sampler), drop_last=drop_last)
        self.even = even

    def __getattr__(self, name: str) -> Any:
        # what else somebody reads is an attribute of the user's sampler; its state is not one of this share of it
        if name.startswith("__") or name in ("sampler", "state_dict", "load_state_dict"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __len__(self) -> int:
        return self.count_after(0)

    def __iter__(self) -> Iterator[Any]:
        return self.after(0)

    def set_epoch(self, epoch: int) -> None:
        """Tells the sampler of all items which epoch it is, if it wants to know."""
        super().set_epoch(epoch)
        if callable(tell := getattr(self.sampler, "set_epoch", None)):
            tell(epoch)

    def count_after(self, consumed: int) -> int:
        """How many items this rank gets when all ranks together have consumed so many."""
        return self._count(len(self.sampler) - consumed)

    def after(self, consumed: int) -> Iterator[Any]:
        """This rank's items when all ranks together have consumed so many. The order is drawn with the first."""
        sampler = self.sampler
        if type(sampler) in (SequentialSampler, list, tuple, range):
            return self._share(iter(sampler), consumed)
        if type(sampler) is RandomSampler or (_is_of_torch(sampler) and _generator_of(sampler) is not None):
            return self._share(_drawn_alike(sampler), consumed)
        decides = not distributed.is_initialised() or dist.get_rank() == 0
        # not more than its length: it may be one that never ends
        return self._share(_told(islice(sampler, len(sampler)) if decides else None), consumed)

    def permutation_after(self, consumed: int) -> Tensor:
        """As `after`, as a tensor; of a sampler that gives each index of a dataset once."""
        order = self._permutation()
        rest = order[consumed:]
        if padding := self._padding(len(rest)):
            repeated = order.repeat(-(-padding // len(order)))
            rest = torch.cat([rest, repeated[:padding]])
        return rest[self.rank :: self.num_replicas][: self._count(max(0, len(order) - consumed))]

    def _count(self, left: int) -> int:
        """This rank's part of so many items."""
        if not self.even:
            left -= self.rank
        elif self.drop_last:
            left -= self.num_replicas - 1
        return max(0, -(-left // self.num_replicas))

    def _padding(self, left: int) -> int:
        return -left % self.num_replicas if self.even and not self.drop_last else 0

    def _share(self, items: Iterator[Any], consumed: int) -> Iterator[Any]:
        """This rank's part of the items of all ranks."""
        total = len(self.sampler)
        left = max(0, total - consumed)
        first = list(islice(items, min(total, self.num_replicas)))
        stream = chain(first, items)
        _exhaust(islice(stream, consumed))
        padded = chain(islice(stream, left), islice(cycle(first), self._padding(left)))
        yield from islice(padded, self.rank, self.rank + self._count(left) * self.num_replicas, self.num_replicas)
        _exhaust(items)  # some samplers draw once more when they end, and not before

    def _permutation(self) -> Tensor:
        if type(self.sampler) is not RandomSampler:
            return torch.arange(len(self.sampler))
        return torch.randperm(len(self.sampler), generator=_agreeing(self.sampler).generator)


def _agreeing(sampler: Any) -> Any:
    """A sampler that draws what that of rank 0 draws."""
    generator = _generator_of(sampler)
    if generator is not None:
        generator.set_state(distributed.broadcast(generator.get_state(), name=_ORDER))
        return sampler
    # as `RandomSampler` does it, but for the exchange
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    agreeing = copy.copy(sampler)
    agreeing.generator = torch.Generator()
    agreeing.generator.manual_seed(distributed.broadcast(seed, name=_ORDER))
    return agreeing


def _drawn_alike(sampler: Any) -> Iterator[Any]:
    yield from _agreeing(sampler)


def _told(items: Iterator[Any] | None) -> Iterator[Any]:
    """The items that rank 0 has; on the others None is given."""
    yield from distributed.broadcast([] if items is None else list(items), name=_ORDER)


def _generator_of(sampler: Any) -> torch.Generator | None:
    return getattr(sampler, "generator", None)


def _is_of_torch(sampler: Any) -> bool:
    """Whether it draws from torch's generators alone, and at once."""
    return type(sampler).__module__.startswith("torch.") and not isinstance(sampler, BatchSampler)


def _exhaust(iterator: Iterator[Any]) -> None:
    deque(iterator, maxlen=0)


def sharded(loader: Any, num_replicas: int, rank: int, *, even: bool = True) -> Any:
    """A copy of a loader that gives the share of one rank; the very same object if it cannot be shared out.

    That is so if its data are iterable-style, if a sampler shares them out already, or if it is no `DataLoader`.

    Args:
        loader: A loader that is the same on all ranks.
        num_replicas: Number of ranks.
        rank: This one.
        even: Whether all ranks get the same number of batches, as training needs; if not, each sample comes once.

    Raises:
        TypeError: Its sampler has no length.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batch_sampler: Any = loader.batch_sampler
    if any(_shares(each) for each in (loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))):
        return loader
    if type(batch_sampler) is BatchSampler:
        drop_last = batch_sampler.drop_last
        shard = ShardSampler(batch_sampler.sampler, num_replicas, rank, even=even, drop_last=drop_last)
        return copy_with(loader, sampler=shard, batch_sampler=BatchSampler(shard, batch_sampler.batch_size, drop_last))
    if batch_sampler is None:
        return copy_with(loader, sampler=ShardSampler(loader.sampler, num_replicas, rank, even=even))
    # how it makes its batches is its own affair: they are shared out as they are
    drop_last = getattr(batch_sampler, "drop_last", False)
    return copy_with(
        loader, batch_sampler=ShardSampler(batch_sampler, num_replicas, rank, even=even, drop_last=drop_last)
    )


def _shares(sampler: Any) -> bool:
    """Whether a sampler gives the share of one rank already."""
    if isinstance(sampler, DistributedSampler):
        return True
    return hasattr(sampler, "rank") and (hasattr(sampler, "num_replicas") or hasattr(sampler, "world_size"))


def refuse_uneven(counts: list[int | float], name: str) -> None:
    """Raise where ranks would train on different numbers of batches.

    Args:
        counts: Batches by rank; inf where the number is not known.
        name: Which loader it is, "train".

    Raises:
        MisconfigurationException: They differ.
    """
    known = {rank: int(count) for rank, count in enumerate(counts) if count != float("inf")}
    if len(set(known.values())) <= 1:
        return
    ranks_of: dict[int, list[int]] = {}
    for rank, count in known.items():
        ranks_of.setdefault(count, []).append(rank)
    told = ", ".join(f"{count} on {_listed(ranks)}" for count, ranks in sorted(ranks_of.items()))
    fewest = min(known.values())
    remedy = f"limit_{name}_batches={fewest}" if fewest else "use_distributed_sampler=True"
    raise MisconfigurationException(
        f"The {name} loader has not the same number of batches on all ranks: {told}. Those with more would wait for"
        f" the others without end. Type: Trainer({remedy}), or give all ranks the same `DataLoader` over all data,"
        " which is then shared out evenly (use_distributed_sampler=True, the default).",
        subject=counts,
    )


def _listed(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
    return f"ranks {shown}"


# What a feed needs to know of the samplers of a loader, shared out or not


def shard_of(loader: Any) -> ShardSampler | None:
    """What shares a loader out that came from `sharded` as a copy; None for any other."""
    samplers = (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    return next((each for each in samplers if isinstance(each, ShardSampler)), None)


def replicas_of(loader: Any) -> int:
    """Among how many ranks the loader's sampler shares the data out; 1 if it does not."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return next((each.num_replicas for each in samplers if isinstance(each, DistributedSampler)), 1)


def total_of(sampler: Any, replicas: int) -> int:
    """How many items a sampler gives to all ranks together."""
    return len(sampler.sampler) if isinstance(sampler, ShardSampler) else len(sampler) * replicas


def left_after(sampler: Any, consumed: int, replicas: int) -> int:
    """How many items are left for this rank when all ranks together have consumed so many."""
    if isinstance(sampler, ShardSampler):
        return sampler.count_after(consumed)
    return len(sampler) - consumed // replicas


def items_after(sampler: Any, consumed: int, replicas: int) -> Iterator[Any]:
    """The items that are left for this rank when all ranks together have consumed so many.

    The iterator first gives None, when it has drawn the order: what a sampler may still draw on its way is drawn when
    it is its turn.
    """
    if isinstance(sampler, ShardSampler):
        return _announced(sampler.after(consumed), 0)
    return _announced(iter(sampler), consumed // replicas)


def _announced(items: Iterator[Any], left_out: int) -> Iterator[Any]:
    _exhaust(islice(items, left_out))
    first = [] if left_out else list(islice(items, 1))
    yield None
    yield from first
    yield from items


def draws_from_torch(sampler: Any) -> bool:
    """Whether a sampler, or what it shares out, is one of torch's own, which draw from torch's generators alone."""
    return sampler is None or type(getattr(sampler, "sampler", sampler)).__module__.startswith("torch.")
