"""Shards are the order of one process, dealt out among ranks. The ranks here are loops of one process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fulmen.data import Feed
from fulmen.data.loaders import shuffles
from fulmen.data.shard import ShardSampler, refuse_uneven, sharded
from fulmen.errors import MisconfigurationException

pytestmark = [
    pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The (train|val) loader has no batches on any rank"),
]

Make = Callable[[], DataLoader[Any]]

sizes = st.integers(0, 40)
ranks = st.integers(1, 6)
batch_sizes = st.integers(1, 7)
seeds = st.integers(0, 2**31)


class Items(list[int]):
    """A dataset whose samples are their own indices, and which has to be asked for each."""


def dataset(size: int, vectorised: bool) -> Any:
    return TensorDataset(torch.arange(size)) if vectorised else Items(range(size))


def numbers(batch: Any) -> list[int]:
    return torch.as_tensor(batch[0] if isinstance(batch, list) else batch).flatten().tolist()


def epochs_of(make: Make, rank: int, replicas: int, *, seed: int, even: bool, count: int = 2) -> list[list[list[int]]]:
    """The batches of a rank, by epoch; all ranks draw from one seed, as if rank 0 had told it."""
    torch.manual_seed(seed)
    feed = Feed(sharded(make(), replicas, rank, even=even), name="train" if even else "val")
    assert feed.num_batches == len(feed.loaders)
    epochs = [[numbers(batch) for batch in feed.start(epoch)] for epoch in range(count)]
    assert [len(epoch) for epoch in epochs] == [feed.num_batches] * count
    return epochs


def dealt_back(shares: list[list[list[int]]]) -> list[list[int]]:
    """The global batches of an epoch, each in the order of one process, from the batches of the ranks."""
    longest = max(map(len, shares), default=0)
    result = []
    for number in range(longest):
        batches = [share[number] if number < len(share) else [] for share in shares]
        rows = range(max(map(len, batches)))
        result.append([batch[row] for row in rows for batch in batches if row < len(batch)])
    return result


def alone(make: Make, seed: int, count: int = 2) -> list[list[int]]:
    """The order of one process, by epoch."""
    torch.manual_seed(seed)
    feed = Feed(make())
    return [[index for batch in feed.start(epoch) for index in numbers(batch)] for epoch in range(count)]


def loader(
    size: int, batch_size: int, shuffle: bool, drop_last: bool, vectorised: bool = True, own: bool = False
) -> Make:
    def make() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(5) if own else None
        data = dataset(size, vectorised)
        return DataLoader(data, batch_size, shuffle and size > 0, drop_last=drop_last, generator=generator)

    return make


@settings(deadline=None, max_examples=50)
@given(
    size=sizes, replicas=ranks, batch_size=batch_sizes, seed=seeds,
    shuffle=st.booleans(), vectorised=st.booleans(), own=st.booleans(),
)  # fmt: skip
def test_training_deals_out_the_order_of_one_process(
    size: int, replicas: int, batch_size: int, seed: int, shuffle: bool, vectorised: bool, own: bool
) -> None:
    make = loader(size, batch_size, shuffle, False, vectorised, own)
    order = alone(make, seed)
    shares = [epochs_of(make, rank, replicas, seed=seed, even=True) for rank in range(replicas)]
    for epoch in range(2):
        assert len({len(share[epoch]) for share in shares}) == 1
        dealt = dealt_back([share[epoch] for share in shares])
        flat = [index for batch in dealt for index in batch]
        missing = -size % replicas
        repeated = (order[epoch] * replicas)[:missing]
        assert flat == order[epoch] + repeated
        assert all(len(batch) == replicas * batch_size for batch in dealt[:-1])


@settings(deadline=None, max_examples=50)
@given(
    size=sizes, replicas=ranks, batch_size=batch_sizes, seed=seeds,
    shuffle=st.booleans(), vectorised=st.booleans(), own=st.booleans(),
)  # fmt: skip
def test_dropping_the_last_gives_the_global_batches_of_one_process(
    size: int, replicas: int, batch_size: int, seed: int, shuffle: bool, vectorised: bool, own: bool
) -> None:
    make = loader(size, batch_size, shuffle, True, vectorised, own)
    whole = alone(loader(size, replicas * batch_size, shuffle, True, vectorised, own), seed)
    shares = [epochs_of(make, rank, replicas, seed=seed, even=True) for rank in range(replicas)]
    for epoch in range(2):
        dealt = dealt_back([share[epoch] for share in shares])
        assert [index for batch in dealt for index in batch] == whole[epoch]


@settings(deadline=None, max_examples=50)
@given(size=sizes, replicas=ranks, batch_size=batch_sizes, shuffle=st.booleans(), vectorised=st.booleans(), seed=seeds)
def test_evaluation_gives_each_sample_once(
    size: int, replicas: int, batch_size: int, shuffle: bool, vectorised: bool, seed: int
) -> None:
    make = loader(size, batch_size, shuffle, False, vectorised)
    order = alone(make, seed)
    shares = [epochs_of(make, rank, replicas, seed=seed, even=False) for rank in range(replicas)]
    for epoch in range(2):
        dealt = dealt_back([share[epoch] for share in shares])
        assert [index for batch in dealt for index in batch] == order[epoch]
        assert all(len(share[epoch]) == ceil(max(0, size - rank) / replicas / batch_size - 1e-9)
                   for rank, share in enumerate(shares))  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(1, 40), before=ranks, after=ranks, batch_size=batch_sizes, seed=seeds, part=st.floats(0, 1),
    shuffle=st.booleans(), drop_last=st.booleans(), vectorised=st.booleans(), own=st.booleans(),
)  # fmt: skip
def test_going_on_with_another_number_of_ranks(
    size: int, before: int, after: int, batch_size: int, seed: int, part: float,
    shuffle: bool, drop_last: bool, vectorised: bool, own: bool,
) -> None:  # fmt: skip
    """What the new ranks get is what is left of the order of one process; the next epoch is that of one process."""
    make = loader(size, batch_size, shuffle, drop_last, vectorised, own)
    order = alone(make if not drop_last else loader(size, 1, shuffle, False, vectorised, own), seed)
    states = []
    for rank in range(before):
        torch.manual_seed(seed)
        feed = Feed(sharded(make(), before, rank))
        assume(feed.num_batches)  # there is a run to go on with
        done = int(part * feed.num_batches)
        list(islice(feed.start(0), done))
        states.append((feed.state_dict(), torch.get_rng_state()))
        feed.close()
    consumed = min(done * before * batch_size, size)
    assert {state["samples"] for state, _ in states} == {consumed}

    state, random_state = states[0]
    shares, seconds = [], []
    for rank in range(after):
        torch.manual_seed(seed + 1)
        feed = Feed(sharded(make(), after, rank))
        feed.load_state_dict(state)
        assert feed.samples == consumed
        batches = feed.start(0)
        torch.set_rng_state(random_state)
        shares.append([numbers(batch) for batch in batches])
        assert feed.is_last
        seconds.append([numbers(batch) for batch in feed.start(1)])
    flat = [index for batch in dealt_back(shares) for index in batch]
    left = order[0][consumed:]
    if drop_last:
        assert flat == left[: len(left) // (after * batch_size) * after * batch_size]
    else:
        assert flat == left + (order[0] * after)[: -len(left) % after]
    second = [index for batch in dealt_back(seconds) for index in batch]
    if flat or not own:  # a generator of the user's is drawn from once more with the last batch
        assert second[:size] == order[1][: len(second)]


class Backwards(Sampler[int]):
    """A sampler of the user's, which draws from Python's generator on its way."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        for index in reversed(range(self.size)):
            yield (index + random.randrange(self.size) + self.epoch) % self.size

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Buckets(BatchSampler):
    """A batch sampler that no one could make again from its attributes."""

    def __init__(self, secret: list[list[int]]) -> None:
        self.batches = secret
        self.colour = "red"

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


SAMPLERS: dict[str, Callable[[], Any]] = {
    "sequence": lambda: SequentialSampler(range(11)),
    "list": lambda: [3, 1, 4, 1, 5, 9, 2],
    "replacement": lambda: RandomSampler(range(11), replacement=True, num_samples=30),
    "more": lambda: RandomSampler(range(11), num_samples=25, generator=torch.Generator().manual_seed(1)),
    "subset": lambda: SubsetRandomSampler([4, 2, 8, 0, 6]),
    "subset, generator": lambda: SubsetRandomSampler([4, 2, 8, 0, 6], torch.Generator().manual_seed(1)),
    "weighted": lambda: WeightedRandomSampler([1.0, 2.0, 3.0], 17),
    "custom": lambda: Backwards(11),
    "batches": lambda: Buckets([[0, 1], [2], [3, 4, 5], [6], [7, 8]]),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_any_sampler_is_dealt_out(name: str, replicas: int) -> None:
    def seeded() -> Any:
        torch.manual_seed(2)
        random.seed(2)
        return SAMPLERS[name]()

    whole = list(seeded())
    shares = [ShardSampler(seeded(), replicas, rank, even=False) for rank in range(replicas)]
    for rank, share in enumerate(shares):
        seeded()
        assert list(share) == whole[rank::replicas]
        assert len(share) == len(whole[rank::replicas])
        assert list(ShardSampler(seeded(), replicas, rank, even=False).after(2)) == whole[2 + rank :: replicas]


def test_a_generator_ends_as_in_one_process() -> None:
    alone, shared = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in RandomSampler(range(10), generator=alone):
        pass
    for drop_last in (False, True):
        shared.manual_seed(3)
        for _ in ShardSampler(RandomSampler(range(10), generator=shared), 3, 1, drop_last=drop_last):
            pass
        assert torch.equal(alone.get_state(), shared.get_state())


@pytest.mark.parametrize("replicas", [2, 3])
def test_batch_samplers_of_the_users_keep_their_batches(replicas: int) -> None:
    batches = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]
    given = []
    for rank in range(replicas):
        shared = sharded(DataLoader(Items(range(9)), batch_sampler=Buckets(batches)), replicas, rank)
        assert shared.batch_sampler.colour == "red"
        assert len(shared) == ceil(5 / replicas)
        given.append([batch.tolist() for batch in shared])
    dealt = [batch for group in zip(*given, strict=True) for batch in group]
    assert dealt == (batches + batches)[: len(dealt)]


def test_batches_that_come_one_by_one() -> None:
    loader = DataLoader(Items(range(7)), batch_size=None)
    assert [list(sharded(loader, 2, rank)) for rank in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 0]]


def test_the_loader_of_the_user_is_not_changed() -> None:
    loader = DataLoader(Items(range(7)), 2, shuffle=True)
    before = loader.sampler, loader.batch_sampler
    shared = sharded(loader, 2, 1)
    assert (loader.sampler, loader.batch_sampler) == before
    assert isinstance(shared.sampler, DistributedSampler)
    assert (shared.sampler.num_replicas, shared.sampler.rank) == (2, 1)
    assert shared.batch_sampler.sampler is shared.sampler
    assert shared.batch_sampler.batch_size == 2
    assert shuffles(shared)
    assert not shuffles(sharded(DataLoader(Items(range(7))), 2, 1))


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class OwnShare(Sampler[int]):
    """Knows its rank by itself."""

    num_replicas, rank = 2, 0

    def __iter__(self) -> Iterator[int]:
        return iter([0, 2])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "loader",
    [
        [torch.ones(2)],
        DataLoader(Numbers()),
        DataLoader(Items(range(4)), sampler=DistributedSampler(Items(range(4)), 2, 0)),
        DataLoader(Items(range(4)), batch_sampler=BatchSampler(DistributedSampler(Items(range(4)), 2, 0), 2, False)),
        DataLoader(Items(range(4)), sampler=OwnShare()),
    ],
    ids=["list", "stream", "distributed", "distributed batches", "own share"],
)
def test_what_cannot_be_shared_out_or_is_already(loader: Any) -> None:
    assert sharded(loader, 2, 1) is loader


def test_samplers_are_told_the_epoch() -> None:
    sampler = Backwards(5)
    list(Feed(sharded(DataLoader(Items(range(5)), sampler=sampler), 2, 0)).start(7))
    assert sampler.epoch == 7


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from ()


def test_a_sampler_needs_a_length() -> None:
    with pytest.raises(TypeError, match=r"`Endless` has no length.*use_distributed_sampler=False"):
        sharded(DataLoader(Items(range(3)), sampler=Endless()), 2, 0)


def test_a_rank_without_samples() -> None:
    feed = Feed(sharded(DataLoader(Items(range(1))), 2, 1, even=False), name="val")
    assert feed.num_batches == 0
    assert list(feed.start(0)) == []


def test_uneven_ranks_are_refused_by_number() -> None:
    refuse_uneven([3, 3, float("inf")], "train")
    with pytest.raises(MisconfigurationException, match="3 on rank 1, 5 on ranks 0, 2") as caught:
        refuse_uneven([5, 3, 5, float("inf")], "train")
    assert "Trainer(limit_train_batches=3)" in str(caught.value)
    assert caught.value.subject == [5, 3, 5, float("inf")]
