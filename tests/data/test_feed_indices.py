"""Which samples are in a batch, where somebody wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from fulmen.data import Feed
from fulmen.data.loaders import complete_copy
from fulmen.errors import PossibleUserWarning
from fulmen.fabric.seed import capture_random

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

SIZE = 11


class Positions(Dataset[int]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> int:
        return index


class Backwards(Sampler[int]):
    """Its length is not known."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE - 1, -1, -1))


class Uneven(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[3], [5, 1, 2], [0, 10]])

    def __len__(self) -> int:
        return 3


def table() -> TensorDataset:
    return TensorDataset(torch.arange(SIZE))


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "table": lambda: DataLoader(table(), 3),
    "table, shuffled": lambda: DataLoader(table(), 3, shuffle=True),
    "table, generator": lambda: DataLoader(table(), 3, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "table, replacement": lambda: DataLoader(table(), 3, sampler=RandomSampler(table(), replacement=True)),
    "map, shuffled": lambda: DataLoader(Positions(), 3, shuffle=True),
    "map, uneven": lambda: DataLoader(Positions(), batch_sampler=Uneven()),
    "map, unknown length": lambda: DataLoader(Positions(), 3, sampler=Backwards()),
    "workers": lambda: DataLoader(Positions(), 3, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(Positions(), 3, shuffle=True, num_workers=1, persistent_workers=True),
}


def rows(batch: Any) -> list[int]:
    return (batch[0] if isinstance(batch, list) else batch).tolist()


def epochs(feed: Feed, count: int = 2) -> list[list[int]]:
    return [rows(batch) for epoch in range(count) for batch in feed.start(epoch)]


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_recording_changes_neither_the_order_nor_what_is_drawn(make: Any) -> None:
    torch.manual_seed(5)
    plain = Feed(make(), name="predict")
    expected, state = epochs(plain), capture_random()["torch"]
    plain.close()

    torch.manual_seed(5)
    feed = Feed(make(), name="predict")
    feed.record_indices()
    seen = [(rows(batch), feed.batch_indices) for epoch in range(2) for batch in feed.start(epoch)]
    assert torch.equal(capture_random()["torch"], state)
    feed.close()
    assert [given for given, _ in seen] == expected
    assert [indices for _, indices in seen] == expected


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_they_are_known_when_an_epoch_is_continued(make: Any) -> None:
    torch.manual_seed(5)
    feed = Feed(make(), name="predict")
    batches = feed.start(0)
    next(batches)
    state = feed.state_dict()
    left = list(map(rows, batches))
    feed.close()
    again = Feed(make(), name="predict")
    again.record_indices()
    again.load_state_dict(state)
    assert [(rows(batch), again.batch_indices) for batch in again.start(0)] == [(batch, batch) for batch in left]
    again.close()


def test_nothing_is_known_unasked() -> None:
    feed = Feed(DataLoader(Positions(), 3), name="predict")
    next(feed.start(0))
    assert feed.batch_indices is None


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), 2),
        DataLoader(Positions(), batch_size=None),
        DataLoader(Positions(), 2, num_workers=1, in_order=False),
        [torch.ones(2)],
    ],
    ids=["stream", "single samples", "any order", "list"],
)
def test_what_cannot_be_known(loader: Any) -> None:
    feed = Feed(loader, name="predict")
    feed.record_indices()
    for _ in feed.start(0):
        assert feed.batch_indices is None
    feed.close()


@pytest.mark.parametrize("dataset", [table(), Positions()], ids=["table", "map"])
def test_a_loader_with_its_last_batch(dataset: Any) -> None:
    loader = DataLoader(dataset, 3, shuffle=True, drop_last=True)
    complete = complete_copy(loader)
    assert (len(loader), len(complete)) == (3, 4)
    assert complete.batch_sampler.sampler is loader.sampler
    torch.manual_seed(2)
    given = epochs(Feed(complete, name="predict"), 1)
    assert sorted(index for batch in given for index in batch) == list(range(SIZE))
    torch.manual_seed(2)
    first = epochs(Feed(loader, name="predict"), 1)
    assert given[:3] == first


def test_a_batch_sampler_of_the_users_own_gives_its_last_batch() -> None:
    class Pairs(BatchSampler):
        def __init__(self, dataset: Any, name: str) -> None:
            super().__init__(SequentialSampler(dataset), 2, drop_last=True)
            self.name = name

    own = Pairs(range(5), "pairs")
    complete = complete_copy(DataLoader(table(), batch_sampler=own))
    assert list(complete.batch_sampler) == [[0, 1], [2, 3], [4]]
    assert (type(complete.batch_sampler), complete.batch_sampler.name) == (Pairs, "pairs")
    assert list(own) == [[0, 1], [2, 3]]


class DropsItself(Sampler[list[int]]):
    drop_last = True

    def __iter__(self) -> Any:
        return iter([[0, 1], [2, 3]])


def test_a_foreign_batch_sampler_that_drops_something_is_kept_and_said() -> None:
    loader = DataLoader(table(), batch_sampler=DropsItself())
    with pytest.warns(PossibleUserWarning, match=r"DropsItself of the predict loader has `drop_last=True`"):
        assert complete_copy(loader) is loader


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(table(), 3),
        DataLoader(Positions(), batch_sampler=Uneven()),
        DataLoader(Stream(), 3, drop_last=True),
        DataLoader(Positions(), batch_size=None),
        [1, 2],
    ],
    ids=["keeps it", "batch sampler", "stream", "single samples", "list"],
)
def test_a_loader_that_leaves_nothing_out_is_kept(loader: Any) -> None:
    assert complete_copy(loader) is loader
