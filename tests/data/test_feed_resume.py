"""A feed continues in the middle of an epoch as if it had never stopped, and loads nothing twice."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fulmen.data import CombinedLoader, Feed
from fulmen.data.shard import replicas_of
from fulmen.errors import PossibleUserWarning

SIZE = 22
pytestmark = pytest.mark.filterwarnings("ignore:The train loader has:fulmen.errors.PossibleUserWarning")


class Recorded(Dataset[Tensor]):
    """Remembers what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.append(index)
        return torch.tensor(index)

    def __len__(self) -> int:
        return SIZE


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(SIZE)


class Drawn(Sampler[int]):
    """An order from Python's generator."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(SIZE))
        random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return SIZE


class Uneven(Sampler[list[int]]):
    """Batches of several sizes."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from (chunk.tolist() for chunk in torch.randperm(SIZE).split([2, 5, 1, 7, 4, 3]))

    def __len__(self) -> int:
        return 6


def table() -> TensorDataset:
    return TensorDataset(torch.arange(SIZE))


Make = Callable[[torch.Generator], DataLoader[Any]]

LOADERS: dict[str, Make] = {
    "table": lambda g: DataLoader(table(), 4, shuffle=True),
    "table, generator": lambda g: DataLoader(table(), 4, shuffle=True, generator=g),
    "table, in order": lambda g: DataLoader(table(), 4),
    "table, drop last": lambda g: DataLoader(table(), 4, shuffle=True, drop_last=True, generator=g),
    "table, weighted": lambda g: DataLoader(table(), 4, sampler=WeightedRandomSampler([1.0] * SIZE, 19, generator=g)),
    "table, replacement": lambda g: DataLoader(
        table(), 9, sampler=RandomSampler(range(SIZE), replacement=True, num_samples=90, generator=g)
    ),
    "map": lambda g: DataLoader(Recorded(), 4, shuffle=True),
    "map, generator": lambda g: DataLoader(Recorded(), 4, shuffle=True, generator=g),
    "map, single": lambda g: DataLoader(Recorded(), batch_size=None, sampler=RandomSampler(range(SIZE))),
    "map, distributed": lambda g: DataLoader(Recorded(), 3, sampler=DistributedSampler(Recorded(), 2, 1)),
    "map, python order": lambda g: DataLoader(Recorded(), 4, sampler=Drawn()),
    "map, python order in batches": lambda g: DataLoader(Recorded(), batch_sampler=BatchSampler(Drawn(), 3, False)),
    "map, uneven": lambda g: DataLoader(Recorded(), batch_sampler=Uneven()),
    "workers": lambda g: DataLoader(Recorded(), 4, shuffle=True, num_workers=2, generator=g),
    "workers, uneven": lambda g: DataLoader(Recorded(), batch_sampler=Uneven(), num_workers=2),
    "persistent workers": lambda g: DataLoader(Recorded(), 4, sampler=Drawn(), num_workers=2, persistent_workers=True),
    "persistent workers, shuffled": lambda g: DataLoader(
        Recorded(), 4, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "persistent workers, generator": lambda g: DataLoader(
        Recorded(), 4, shuffle=True, num_workers=2, persistent_workers=True, generator=g
    ),
}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def seed_all(seed: int = 4) -> torch.Generator:
    torch.manual_seed(seed)
    random.seed(seed)
    return torch.Generator().manual_seed(seed)


def numbers(batch: Any) -> Any:
    return torch.as_tensor(batch[0] if isinstance(batch, list) else batch).flatten().tolist()


def uninterrupted(make: Make) -> list[list[Any]]:
    generator = seed_all()
    feed = Feed(make(generator))
    epochs = [[(numbers(batch), torch.rand(1).item()) for batch in feed.start(epoch)] for epoch in range(3)]
    feed.close()
    return epochs


def interrupt(make: Make, after: int) -> tuple[dict[str, Any], Tensor, Any, int]:
    """Stop in epoch 1; what a checkpoint holds then, and how many samples were given on all ranks."""
    generator = seed_all()
    feed = Feed(make(generator))
    for _ in feed.start(0):
        torch.rand(1)
    samples = 0
    batches = feed.start(1)
    for _ in range(after):
        samples += replicas_of(feed.loaders) * len(numbers(next(batches)))
        torch.rand(1)
    state = through_a_file(feed.state_dict())
    assert (state["epoch"], state["batches"], state["samples"]) == (1, after, samples)
    random_state = torch.get_rng_state(), random.getstate()
    feed.close()
    return state, *random_state, samples


# workers are slow to start
POINTS = {name: [3, "all"] if "workers" in name else [0, 1, 3, "all but one", "all"] for name in LOADERS}


@pytest.mark.parametrize(("name", "after"), [(name, after) for name, points in POINTS.items() for after in points])
def test_resuming_equals_an_uninterrupted_run(name: str, after: int | str) -> None:
    make = LOADERS[name]
    epochs = uninterrupted(make)
    consumed = {"all but one": len(epochs[1]) - 1, "all": len(epochs[1])}.get(str(after), after)
    assert isinstance(consumed, int)
    state, torch_state, python_state, samples = interrupt(make, consumed)

    loader = make(seed_all(77))
    feed = Feed(loader)
    feed.load_state_dict(state)
    assert (feed.batches, feed.samples) == (consumed, samples)
    batches = feed.start(1)
    torch.set_rng_state(torch_state)
    random.setstate(python_state)
    rest = [(numbers(batch), torch.rand(1).item()) for batch in batches]
    assert rest == epochs[1][consumed:]
    assert feed.batches == len(epochs[1])
    assert feed.is_last
    assert [(numbers(batch), torch.rand(1).item()) for batch in feed.start(2)] == epochs[2]
    feed.close()
    if isinstance(loader.dataset, Recorded) and not loader.num_workers:
        given = [number for batch, _ in rest + epochs[2] for number in batch]
        assert loader.dataset.loaded == given, "something was loaded that was not given"


@pytest.mark.parametrize("name", ["table, generator", "map, generator", "workers"])
def test_the_next_epoch_after_a_finished_one(name: str) -> None:
    make = LOADERS[name]
    epochs = uninterrupted(make)
    generator = seed_all()
    feed = Feed(make(generator))
    for epoch in range(2):
        for _ in feed.start(epoch):
            torch.rand(1)
    state, torch_state = through_a_file(feed.state_dict()), torch.get_rng_state()
    feed.close()
    feed = Feed(make(seed_all(77)))
    feed.load_state_dict(state)
    torch.set_rng_state(torch_state)
    assert [(numbers(batch), torch.rand(1).item()) for batch in feed.start(2)] == epochs[2]
    assert feed.batches == len(epochs[2])
    feed.close()


def test_a_generator_shared_with_another_loader() -> None:
    def run(stop: bool) -> list[Any]:
        generator = seed_all()
        feed = Feed(DataLoader(table(), 4, shuffle=True, generator=generator))
        other = DataLoader(table(), 4, shuffle=True, generator=generator)
        seen = []
        batches = feed.start(0)
        seen += [numbers(next(batches)) for _ in range(2)]
        list(other)
        if stop:
            state = through_a_file(feed.state_dict())
            feed = Feed(DataLoader(table(), 4, shuffle=True, generator=torch.Generator().manual_seed(8)))
            feed.load_state_dict(state)
            batches = feed.start(0)
        return seen + [numbers(batch) for batch in [*batches, *feed.start(1)]]

    assert run(stop=True) == run(stop=False)


def test_another_batch_size_continues_with_the_next_sample() -> None:
    for dataset in (table(), Recorded()):
        torch.manual_seed(3)
        order = [number for batch in DataLoader(dataset, 1, shuffle=True) for number in numbers(batch)]
        torch.manual_seed(3)
        feed = Feed(DataLoader(dataset, 4, shuffle=True))
        batches = feed.start(0)
        for _ in range(2):
            next(batches)
        state = feed.state_dict()
        feed = Feed(DataLoader(dataset, 5, shuffle=True))
        feed.load_state_dict(state)
        rest = [numbers(batch) for batch in feed.start(0)]
        assert [len(batch) for batch in rest] == [5, 5, 4]
        assert [number for batch in rest for number in batch] == order[8:]
        assert feed.samples == SIZE
        assert feed.is_last


def test_a_state_without_an_order_skips_by_count() -> None:
    for dataset in (table(), Recorded()):
        feed = Feed(DataLoader(dataset, 4))
        feed.load_state_dict({"epoch": 0, "batches": 2})
        assert feed.samples == 8
        assert [number for batch in feed.start(0) for number in numbers(batch)] == list(range(8, SIZE))


def test_a_resumed_start_leaves_the_global_generators_alone() -> None:
    for make in (LOADERS["table"], LOADERS["map"], LOADERS["map, python order"]):
        state, *_ = interrupt(make, 2)
        feed = Feed(make(seed_all(5)))
        feed.load_state_dict(state)
        before = torch.get_rng_state(), random.getstate()
        feed.start(1)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()


class Listed:
    """No length, no state."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.full((2,), number) for number in range(5)])


@pytest.mark.parametrize("make", [lambda: DataLoader(Stream(), 4), Listed])
def test_streams_are_read_again_with_one_warning(make: Callable[[], Any]) -> None:
    loader = make()
    seed_all()
    feed = Feed(loader)
    epochs = [[numbers(batch) for batch in feed.start(epoch)] for epoch in range(2)]
    seed_all()
    feed = Feed(loader)
    list(feed.start(0))
    batches = feed.start(1)
    for _ in range(2):
        next(batches)
    state = through_a_file(feed.state_dict())
    feed = Feed(loader)
    feed.load_state_dict(state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rest = [numbers(batch) for batch in feed.start(1)]
    assert rest == epochs[1][2:]
    assert [warning.category for warning in caught] == [PossibleUserWarning]
    assert "state_dict" in str(caught[0].message)


class Stateful:
    """Keeps its own position."""

    def __init__(self) -> None:
        self.next = 0
        self.read = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.next < 6:
            self.next += 1
            self.read += 1
            yield torch.full((2,), self.next)
        self.next = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


class SizedStateful(Stateful):
    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize("kind", [Stateful, SizedStateful])
def test_a_loader_with_a_state_gets_it(kind: type[Stateful]) -> None:
    feed = Feed(kind())
    batches = feed.start(0)
    for _ in range(2):
        next(batches)
    state = through_a_file(feed.state_dict())
    loader = kind()
    feed = Feed(loader)
    feed.load_state_dict(state)
    assert [numbers(batch)[0] for batch in feed.start(0)] == [3, 4, 5, 6]
    assert loader.read == 4
    assert feed.is_last


@pytest.mark.filterwarnings("ignore:To continue:fulmen.errors.PossibleUserWarning")
@pytest.mark.parametrize("stop", [2, 6])
def test_persistent_workers_of_a_stream_draw_no_second_seed(stop: int) -> None:
    def make() -> Feed:
        return Feed(DataLoader(Ordered(), 4, num_workers=1, persistent_workers=True))

    def epoch(feed: Feed, number: int) -> list[Any]:
        return [numbers(batch) for batch in feed.start(number)] + [torch.rand(1).item()]

    seed_all()
    feed = make()
    whole = [epoch(feed, number) for number in range(3)]
    feed.close()
    seed_all()
    feed = make()
    epoch(feed, 0)
    batches = feed.start(1)
    for _ in range(stop):
        next(batches)
    state, random_state = through_a_file(feed.state_dict()), torch.get_rng_state()
    feed.close()
    feed = make()
    feed.load_state_dict(state)
    rest = feed.start(1)
    torch.set_rng_state(random_state)
    assert [numbers(batch) for batch in rest] + [torch.rand(1).item()] == whole[1][stop:]
    assert epoch(feed, 2) == whole[2]
    feed.close()


class Ordered(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(SIZE)


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size", "sequential"])
@pytest.mark.parametrize("second", ["table", "stream"])
@pytest.mark.filterwarnings("ignore:To continue:fulmen.errors.PossibleUserWarning")
def test_combined_loaders_resume(mode: str, second: str) -> None:
    def make() -> CombinedLoader:
        # what is drawn while reading ahead cannot be drawn again, so no order may be random next to a stream
        small = DataLoader(TensorDataset(torch.arange(100, 107)), 3, shuffle=second == "table")
        large = DataLoader(table(), 4, shuffle=True) if second == "table" else Listed()
        return CombinedLoader({"small": small, "large": [large]}, mode)

    def shown(batch: Any) -> Any:
        if mode == "sequential":
            return numbers(batch)
        parts = (batch["small"], batch["large"][0])
        return [None if part is None else numbers(part) for part in parts]

    def states() -> tuple[Tensor, Any]:
        return torch.get_rng_state(), random.getstate()

    seed_all()
    feed = Feed(make())
    whole = [[shown(batch) for batch in feed.start(epoch)] for epoch in range(2)]
    samples = feed.samples
    for stop in range(len(whole[0])):
        seed_all()
        feed = Feed(make())
        batches = feed.start(0)
        for _ in range(stop):
            next(batches)
        state, random_state = through_a_file(feed.state_dict()), states()
        seed_all(9)
        feed = Feed(make())
        feed.load_state_dict(state)
        rest = feed.start(0)
        torch.set_rng_state(random_state[0])
        assert [shown(batch) for batch in rest] == whole[0][stop:], stop
        assert [shown(batch) for batch in feed.start(1)] == whole[1], stop
        assert feed.samples == samples


def test_other_loaders_than_before_are_refused() -> None:
    state = Feed([DataLoader(table()), DataLoader(table())]).state_dict()
    with pytest.raises(RuntimeError, match="2 loaders, but there are 1 now"):
        Feed(DataLoader(table())).load_state_dict(state)
