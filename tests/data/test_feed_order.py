"""A feed gives what `for batch in loader` gives, bit for bit, and leaves every generator in the same state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from fulmen.data import Feed
from fulmen.data.fetch import table_of

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

SIZE = 21


def columns(size: int = SIZE) -> tuple[Tensor, Tensor]:
    return torch.arange(size * 6, dtype=torch.float32).reshape(size, 1, 2, 3), torch.arange(size)


class Squares(Dataset[dict[str, Any]]):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((2,), float(index)), "noise": torch.rand(()), "index": index}

    def __len__(self) -> int:
        return SIZE


class Bulk(Squares):
    calls = 0

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        type(self).calls += 1
        return [self[index] for index in indices]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, SIZE, step):
            yield torch.tensor([index]) + torch.rand(1)


class EveryOther(Sampler[int]):
    """Draws lazily, from two generators."""

    def __iter__(self) -> Iterator[int]:
        for index in range(0, SIZE, 2):
            yield (index + random.randrange(3) + int(torch.randint(3, ()))) % SIZE

    def __len__(self) -> int:
        return (SIZE + 1) // 2


class DrawsAtOnce(Sampler[list[int]]):
    """A batch sampler that draws in `__iter__`, before torch draws the base seed of the workers."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([chunk.tolist() for chunk in torch.randperm(SIZE).split([2, 5, 1, 7, 6])])

    def __len__(self) -> int:
        return 5


def split(size: int = SIZE) -> Subset[Any]:
    return random_split(TensorDataset(*columns(size)), [size - 4, 4], torch.Generator().manual_seed(5))[0]


def nested() -> Subset[Any]:
    return Subset(split(), [3, 11, 0, 0, 7, 12, 2, 9])


DATASETS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TensorDataset(*columns()),
    "split": split,
    "nested": nested,
    "negative": lambda: Subset(split(), [3, -1, 0, 0, 7, -12, 2, 9]),
    "map": Squares,
    "bulk": Bulk,
}

SAMPLERS: dict[str, Callable[[torch.Generator | None], dict[str, Any]]] = {
    "replacement": lambda g: {"sampler": RandomSampler(range(SIZE), replacement=True, num_samples=70, generator=g)},
    "more": lambda g: {"sampler": RandomSampler(range(SIZE), num_samples=50, generator=g)},
    "fewer": lambda g: {"sampler": RandomSampler(range(SIZE), num_samples=13, generator=g)},
    "weighted": lambda g: {"sampler": WeightedRandomSampler([1.0] * SIZE, 17, generator=g)},
    "subset": lambda g: {"sampler": SubsetRandomSampler([3, 1, 4, 15, 9], generator=g)},
    "custom": lambda _: {"sampler": EveryOther()},
    "list": lambda _: {"sampler": [3, -1, 4, 1, 5]},
    "own batches": lambda g: {"batch_sampler": BatchSampler(RandomSampler(range(SIZE), generator=g), 4, True)},
    "custom batches": lambda _: {"batch_sampler": DrawsAtOnce()},
    "single": lambda _: {"batch_size": None},
    "single, shuffled": lambda g: {"batch_size": None, "sampler": RandomSampler(range(SIZE), generator=g)},
    "lists as samples": lambda _: {
        "batch_size": None,
        "sampler": BatchSampler(SequentialSampler(range(SIZE)), 4, False),
    },
}


def seed_all() -> None:
    torch.manual_seed(11)
    random.seed(11)


def generator_states(generator: torch.Generator | None) -> list[Any]:
    own = [] if generator is None else [generator.get_state().tolist()]
    return [torch.get_rng_state().tolist(), random.getstate(), *own]


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert left.stride() == right.stride()
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def check(make: Callable[[torch.Generator | None], DataLoader[Any]], *, own: bool, epochs: int = 3) -> Feed:
    """Compare epochs of a raw loop with those of a feed, drawing between batches as training does."""
    seed_all()
    generator = torch.Generator().manual_seed(3) if own else None
    loader = make(generator)
    raw: list[Any] = []
    for _ in range(epochs):
        for batch in loader:
            raw.append((batch, torch.rand(1)))
        raw.append(generator_states(generator))

    seed_all()
    generator = torch.Generator().manual_seed(3) if own else None
    feed = Feed(make(generator))
    fed: list[Any] = []
    for epoch in range(epochs):
        for batch in feed.start(epoch):
            fed.append((batch, torch.rand(1)))
        fed.append(generator_states(generator))
    feed.close()
    assert_same(raw, fed)
    return feed


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("name", DATASETS)
def test_epochs_equal_a_raw_loop(name: str, batch_size: int, shuffle: bool, drop_last: bool, own: bool) -> None:
    dataset = DATASETS[name]()
    check(lambda g: DataLoader(dataset, batch_size, shuffle, drop_last=drop_last, generator=g), own=own)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("dataset", "name"),
    # no indices like -1 or [1, 2] for a dataset that does not take them
    [("tensors", name) for name in SAMPLERS]
    + [("map", name) for name in SAMPLERS if name not in ("list", "lists as samples")],
)
def test_samplers_equal_a_raw_loop(dataset: str, name: str, own: bool) -> None:
    data = DATASETS[dataset]()
    kwargs = SAMPLERS[name]
    size = {} if {"batch_size", "batch_sampler"} & kwargs(None).keys() else {"batch_size": 4}
    check(lambda g: DataLoader(data, generator=g, **size, **kwargs(g)), own=own)


@pytest.mark.parametrize("drop_last", [False, True])
def test_streams_equal_a_raw_loop(drop_last: bool) -> None:
    # a stream is read one batch ahead, so nothing may be drawn between its batches here
    seed_all()
    loader = DataLoader(Stream(), 4, drop_last=drop_last)
    raw = [[list(loader), generator_states(None)] for _ in range(2)]
    seed_all()
    feed = Feed(DataLoader(Stream(), 4, drop_last=drop_last))
    assert_same(raw, [[list(feed.start(epoch)), generator_states(None)] for epoch in range(2)])


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["tensors", "map", "custom", "custom batches", "stream"])
def test_workers_equal_a_raw_loop(kind: str, persistent: bool) -> None:
    def make(generator: torch.Generator | None) -> DataLoader[Any]:
        workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": persistent, "generator": generator}
        if kind == "stream":
            return DataLoader(Stream(), 4, **workers)
        if kind in SAMPLERS:
            size = {} if kind == "custom batches" else {"batch_size": 4}
            return DataLoader(Squares(), **size, **SAMPLERS[kind](generator), **workers)
        return DataLoader(DATASETS[kind](), 4, shuffle=True, **workers)

    check(make, own=True, epochs=2)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    own=st.booleans(),
    subset=st.booleans(),
)
def test_vectorised_fetch_equals_a_raw_loop(
    size: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool, own: bool, subset: bool
) -> None:
    dataset: Any = TensorDataset(*columns(size))
    if subset:
        dataset = Subset(
            dataset, torch.randint(size, (size + 3,), generator=torch.Generator().manual_seed(seed)).tolist()
        )

    def run(epochs: Callable[[DataLoader[Any]], Callable[[int], Any]]) -> list[Any]:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed) if own else None
        loader = DataLoader(dataset, batch_size, shuffle, drop_last=drop_last, generator=generator)
        start = epochs(loader)
        return [[list(start(epoch)), generator_states(generator)] for epoch in range(2)]

    raw = run(lambda loader: lambda epoch: loader)
    if not raw[0][0]:
        return
    assert_same(raw, run(lambda loader: Feed(loader).start))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(6, 3, 2, 2),
        torch.zeros(6, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.zeros(3, 6).T,
        torch.zeros(6, 1, 1, 4),
        torch.zeros(6, 0),
        torch.zeros(1, 4, 1),
        torch.zeros(12, 4)[::2],
        torch.zeros(6, dtype=torch.bool),
        torch.zeros(6, 2, dtype=torch.bfloat16),
        torch.zeros(6, 2, dtype=torch.complex64).conj(),
        torch.zeros(6, dtype=torch.uint8),
        torch.zeros(6, 2, dtype=torch.float8_e4m3fn),
        torch.zeros(6, 2, requires_grad=True),
        torch.nn.Parameter(torch.zeros(6, 2)),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}",
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_layout_is_that_of_default_collate(tensor: Tensor, shuffle: bool) -> None:
    loader = DataLoader(TensorDataset(tensor), 4, shuffle)
    torch.manual_seed(0)
    raw = list(loader)
    torch.manual_seed(0)
    fed = list(Feed(loader).start(0))
    for left, right in zip(raw, fed, strict=True):
        assert left[0].dtype == right[0].dtype
        assert left[0].stride() == right[0].stride()
        assert left[0].requires_grad == right[0].requires_grad
        assert left[0].to(torch.complex64).tolist() == right[0].to(torch.complex64).tolist()


def test_changing_a_batch_leaves_the_dataset_alone() -> None:
    x, y = columns()
    for batch in Feed(DataLoader(TensorDataset(x, y), 4)).start(0):
        batch[0].zero_()
    assert torch.equal(x, columns()[0])


def test_bulk_datasets_are_asked_once_per_batch() -> None:
    Bulk.calls = 0
    list(Feed(DataLoader(Bulk(), 4)).start(0))
    assert Bulk.calls == 6


def first_column(samples: list[Any]) -> Tensor:
    return torch.stack([x for x, _ in samples])


class OwnItem(TensorDataset):
    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(-part for part in super().__getitem__(index))


class OwnIter(DataLoader[Any]):
    def __iter__(self) -> Any:
        return ([part + 1 for part in batch] for batch in super().__iter__())


def test_overridden_methods_are_called() -> None:
    check(lambda g: DataLoader(OwnItem(*columns()), 4, shuffle=True, generator=g), own=True)
    check(lambda g: OwnIter(TensorDataset(*columns()), 4, shuffle=True, generator=g), own=True)
    check(
        lambda g: DataLoader(TensorDataset(*columns()), 4, collate_fn=lambda b: torch.stack([x for x, _ in b])),
        own=False,
    )


def test_only_plain_tables_are_vectorised() -> None:
    dataset = TensorDataset(*columns())
    assert table_of(DataLoader(dataset)) is not None
    assert table_of(DataLoader(nested())) is not None
    for loader in (
        DataLoader(OwnItem(*columns())),
        DataLoader(dataset, collate_fn=list),
        DataLoader(dataset, batch_size=None),
        DataLoader(dataset, num_workers=1),
        DataLoader(Subset(dataset, [0, SIZE])),
        DataLoader(Subset(dataset, [0.0, 1.0])),
        DataLoader(TensorDataset(torch.zeros(3, 6).T)),
    ):
        assert table_of(loader) is None


def test_indices_out_of_range_raise_as_in_a_raw_loop() -> None:
    with pytest.raises(IndexError):
        list(Feed(DataLoader(Subset(TensorDataset(*columns()), [0, SIZE]))).start(0))
    with pytest.raises(IndexError):
        list(Feed(DataLoader(TensorDataset(*columns()), sampler=[0, SIZE])).start(0))


def test_a_changed_default_collate_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.collate import default_collate_fn_map

    monkeypatch.setitem(default_collate_fn_map, Tensor, lambda batch, *, collate_fn_map=None: len(batch))
    assert next(Feed(DataLoader(TensorDataset(*columns()), 4)).start(0)) == [4, 4]


def test_the_order_is_drawn_by_start() -> None:
    for dataset in (TensorDataset(*columns()), Squares()):
        torch.manual_seed(0)
        raw = [
            batch[1] if isinstance(batch, list) else batch["index"] for batch in DataLoader(dataset, 4, shuffle=True)
        ]
        torch.manual_seed(0)
        batches = Feed(DataLoader(dataset, 4, shuffle=True)).start(0)
        torch.manual_seed(99)
        fed = [batch[1] if isinstance(batch, list) else batch["index"] for batch in batches]
        assert_same(raw, fed)
