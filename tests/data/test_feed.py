"""Limits, the last batch, transfer, counters and advice of a feed."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from fulmen.data import CombinedLoader, Feed, flatten, is_combined, limited_length, without_shuffle
from fulmen.errors import MisconfigurationException, PossibleUserWarning


def loader(size: int = 10, batch_size: int = 2, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(size)), batch_size, **kwargs)


class Unsized:
    """An iterable that counts what is read from it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.read = 0

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.length):
            self.read += 1
            yield torch.full((3,), number)


class Claiming(Unsized):
    """Says it has 4 batches."""

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [
        (10, 1.0, 10),
        (10, None, 10),
        (10, 1, 1),
        (10, 3, 3),
        (10, 30, 10),
        (10, 0, 0),
        (10, 0.0, 0),
        (10, 0.25, 2),
        (10, 2.0, 2),
        (0, 0.5, 0),
        (inf, 1.0, inf),
        (inf, 7, 7),
        (inf, 0.0, 0),
    ],
)
def test_limits(length: float, limit: float | None, expected: float) -> None:
    assert limited_length(length, limit, "train") == expected


@pytest.mark.parametrize(
    ("length", "limit", "message"),
    [
        (10, -1, "`limit_val_batches=-1` is not possible"),
        (10, -0.5, "is not possible"),
        (10, 1.5, "a fraction of the loader"),
        (10, float("nan"), "is not possible"),
        (10, "all", "limit_val_batches='all'"),
        (10, 0.05, r"of 10 batches leaves none. Give at least `limit_val_batches=0.1`"),
        (inf, 0.5, "does not know its length"),
    ],
)
def test_impossible_limits(length: float, limit: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message) as caught:
        limited_length(length, limit, "val")
    assert caught.value.subject is limit


def test_an_impossible_limit_is_named_as_the_user_gave_it() -> None:
    with pytest.raises(MisconfigurationException, match=r"The val loader is too short: `overfit_batches=0\.05` of 10"):
        limited_length(10, 0.05, "val", "overfit_batches")
    with pytest.raises(MisconfigurationException, match=r"^`overfit_batches=0\.5` is a fraction, but the train loader"):
        Feed(Unsized(5), limit=0.5, limited_by="overfit_batches")


@pytest.mark.parametrize(
    ("loaders", "limit", "num_batches", "given"),
    [
        (loader(), 1.0, 5, 5),
        (loader(), 3, 3, 3),
        (loader(), 0, 0, 0),
        (Unsized(5), 1.0, inf, 5),
        (Unsized(5), 3, 3, 3),
        (Unsized(5), 9, 9, 5),
        (Unsized(0), 1.0, inf, 0),
        (Claiming(7), 1.0, 4, 4),
        (Claiming(2), 1.0, 4, 2),
        (itertools.count(), 6, 6, 6),
    ],
)
def test_the_last_batch_is_known(loaders: Any, limit: float, num_batches: float, given: int) -> None:
    feed = Feed(loaders, limit=limit)
    assert feed.num_batches == num_batches
    lasts = [feed.is_last for _ in feed.start(0)]
    exact = not (isinstance(loaders, Claiming) and loaders.length < 4)  # nobody can know that it ends too early
    assert lasts == [False] * (given - 1) + [exact] * (given > 0)
    assert feed.is_last
    assert feed.batches == given
    if num_batches:
        feed.start(1)
        assert feed.is_last is False


def test_not_more_is_read_than_needed() -> None:
    stream = Unsized(9)
    batches = Feed(stream, limit=4).start(0)
    next(batches)
    assert stream.read == 2
    assert len(list(batches)) == 3
    assert stream.read == 4
    sized = Claiming(9)
    for count, _ in enumerate(Feed(sized).start(0), start=1):
        assert sized.read == count


def test_transfer_is_called_when_a_batch_is_given() -> None:
    seen: list[Any] = []

    def transfer(batch: Any, dataloader_idx: int) -> Any:
        seen.append((int(batch[0]), dataloader_idx))
        return batch + 100

    for source in (Unsized(3), Claiming(4)):
        seen.clear()
        feed = Feed(source, transfer=transfer)
        for number, batch in enumerate(feed.start(0)):
            assert batch.tolist() == [100 + number] * 3
            assert seen[-1] == (number, 0)
            assert len(seen) == number + 1


def test_transfer_gets_the_dataloader_idx_in_sequence() -> None:
    feed = Feed(CombinedLoader([Unsized(2), Unsized(1)], "sequential"), transfer=lambda batch, index: index)
    assert list(feed.start(0)) == [0, 0, 1]


@pytest.mark.parametrize(
    ("source", "samples"),
    [
        (loader(10, 4), 10),
        (loader(10, 4, drop_last=True), 8),
        (DataLoader(list(range(7)), 3), 7),
        (DataLoader(list(range(7)), batch_sampler=[[1, 2], [3], [4, 5, 6]], collate_fn=lambda batch: "text"), 6),
        (Unsized(4), 12),
        ([["text"], ["no tensor"]], 0),
        ({"a": loader(10, 4), "b": loader(4, 4)}, 22),
    ],
)
def test_samples_are_counted(source: Any, samples: int) -> None:
    feed = Feed(source)
    for epoch in range(2):
        list(feed.start(epoch))
        assert feed.samples == samples
        feed.start(epoch + 1)
        assert feed.samples == 0


def test_samples_do_not_count_what_was_read_ahead() -> None:
    feed = Feed(Unsized(4))
    assert [feed.samples for _ in feed.start(0)] == [3, 6, 9, 12]


class Told(SequentialSampler):
    def __init__(self, data_source: Any) -> None:
        super().__init__(data_source)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_samplers_are_told_the_epoch_once() -> None:
    data = TensorDataset(torch.arange(4))
    sampler, inner = Told(data), Told(data)
    for source in (DataLoader(data, sampler=sampler), DataLoader(data, batch_sampler=BatchSampler(inner, 2, False))):
        feed = Feed(source)
        for epoch in (0, 1, 5):
            list(feed.start(epoch))
    assert sampler.epochs == inner.epochs == [0, 1, 5]


def test_a_distributed_sampler_shuffles_anew_in_each_epoch() -> None:
    data = TensorDataset(torch.arange(20))
    feed = Feed(DataLoader(data, 10, sampler=DistributedSampler(data, 2, 0)))
    first, second = ([batch[0].tolist() for batch in feed.start(epoch)] for epoch in range(2))
    assert first != second


def test_several_loaders_give_their_collection() -> None:
    feed = Feed({"a": loader(4), "b": [loader(10)]})
    assert feed.num_batches == 5
    batches = list(feed.start(0))
    assert [batch["a"][0].tolist() for batch in batches] == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]
    assert [batch["b"][0][0].tolist() for batch in batches][-1] == [8, 9]
    assert feed.is_last


@pytest.mark.parametrize(
    ("loaders", "limit", "expected"),
    [
        ([loader(8), loader(16)], 0.5, 4),
        ([loader(4), loader(16)], 3, 3),
        (CombinedLoader([loader(4), loader(16)], "min_size"), 1.0, 2),
        (CombinedLoader([loader(4), loader(16)], "max_size"), 5, 5),
        (CombinedLoader([loader(4), loader(16)], "sequential"), 3, 5),
        ([loader(4)], 1.0, 2),
    ],
)
def test_limits_of_several_loaders(loaders: Any, limit: float, expected: int) -> None:
    feed = Feed(loaders, limit=limit)
    assert feed.num_batches == expected
    for epoch in range(2):
        assert len(list(feed.start(epoch))) == expected


def test_leaving_an_epoch_early_and_starting_the_next() -> None:
    feed = Feed(loader(20, 2, num_workers=1, persistent_workers=True))
    next(feed.start(0))
    assert [batch[0].tolist() for batch in feed.start(1)] == [[n, n + 1] for n in range(0, 20, 2)]
    feed.close()


def test_the_users_loader_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    source = DataLoader(Seeds(), num_workers=1, persistent_workers=True)
    before = dict(vars(source))
    feed = Feed(source)
    list(feed.start(0))
    assert vars(source) == before
    assert feed.loaders is source
    feed.close()


class Seeds(torch.utils.data.Dataset[int]):
    def __getitem__(self, index: int) -> int:
        import random

        return random.getrandbits(40)

    def __len__(self) -> int:
        return 2


class SeedStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        import random

        yield random.getrandbits(40)


@pytest.mark.parametrize("dataset", [Seeds(), SeedStream()])
def test_workers_are_seeded_by_rank(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulmen.ranks import rank_zero_only

    monkeypatch.setenv("PL_SEED_WORKERS", "1")

    def drawn(rank: int) -> int:
        rank_zero_only.rank = rank
        torch.manual_seed(0)
        return int(next(Feed(DataLoader(dataset, num_workers=1)).start(0)))

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_users_worker_init_fn_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    source = DataLoader(Seeds(), num_workers=1, worker_init_fn=lambda _: random.seed(7))
    assert int(next(Feed(source).start(0))) == random.Random(7).getrandbits(40)


@pytest.mark.parametrize("loaders", [None, 3, [loader(), object()]])
def test_a_loader_must_be_iterable(loaders: Any) -> None:
    with pytest.raises(TypeError, match=r"is not iterable. Give a `torch.utils.data.DataLoader"):
        Feed(loaders)


def test_empty_loaders() -> None:
    with pytest.warns(UserWarning, match="no batches on any rank"):
        feed = Feed(loader(1, 2, drop_last=True))
    assert list(feed.start(0)) == []
    with pytest.raises(RuntimeError, match="but 3 on others"):
        Feed(loader(1, 2, drop_last=True), sum_over_ranks=lambda local: local + 3)
    with pytest.warns(UserWarning, match="but 3 on others"):
        Feed(loader(1, 2, drop_last=True), sum_over_ranks=lambda local: local + 3, allow_zero_length=True)


@pytest.mark.parametrize("loaders", [{}, {"a": {}}], ids=str)
def test_no_loaders_at_all(loaders: Any) -> None:
    with pytest.warns(UserWarning, match="The collection of train loaders is empty"):
        feed = Feed(loaders)
    assert (feed.num_batches, list(feed.start(0))) == (0, [])


def test_reloading_workers_with_pinned_memory_are_mentioned() -> None:
    stream = DataLoader(SizelessStream(), num_workers=2, persistent_workers=True, pin_memory=True)
    with pytest.warns(PossibleUserWarning, match="is replaced every few epochs"):
        Feed(stream, reloading=True)


class SizelessStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class SizedStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


@pytest.mark.filterwarnings("ignore:.*may be a bottleneck")
def test_a_stream_with_a_length_is_mentioned() -> None:
    with pytest.warns(UserWarning, match="has a `__len__`"):
        Feed(DataLoader(SizedStream()))


def test_evaluation_loaders_should_not_shuffle() -> None:
    Feed(loader(shuffle=True))
    Feed(loader(), name="val")
    with pytest.warns(PossibleUserWarning, match="The val loader shuffles"):
        Feed(loader(shuffle=True), name="val")


def test_flatten_and_is_combined() -> None:
    a, b = loader(), loader()
    assert flatten(a) == [a]
    assert flatten({"x": [a, (b,)]}) == [a, b]
    assert flatten(CombinedLoader([a, b])) == [a, b]
    assert is_combined(CombinedLoader(a))
    assert not is_combined([a])


class FixedBatches(torch.utils.data.Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[2], [0, 1]])


def test_without_shuffle() -> None:
    data = TensorDataset(torch.arange(6))
    still, stream = loader(), DataLoader(SizedStream())
    shuffled = DataLoader(data, 4, shuffle=True, drop_last=True)
    batched = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 3, False))
    single = DataLoader(data, batch_size=None, shuffle=True)
    with pytest.warns(UserWarning, match="`overfit_batches` needs the same batches"):
        changed = without_shuffle({"still": still, "rest": [shuffled, batched, single, stream]})
    assert changed["still"] is still
    assert changed["rest"][3] is stream
    assert [[part.tolist() for (part,) in loader] for loader in changed["rest"][:3]] == [
        [[0, 1, 2, 3]],
        [[0, 1, 2], [3, 4, 5]],
        [0, 1, 2, 3, 4, 5],
    ]
    assert isinstance(shuffled.sampler, RandomSampler)
    assert changed["rest"][0].drop_last


def test_without_shuffle_keeps_what_is_in_order() -> None:
    loaders = [loader(), loader(3), DataLoader(TensorDataset(torch.arange(3)), batch_sampler=[[2], [0, 1]])]
    assert without_shuffle(loaders) is loaders


def test_without_shuffle_keeps_the_mode() -> None:
    with pytest.warns(UserWarning, match="overfit_batches"):
        changed = without_shuffle(CombinedLoader([loader(shuffle=True), loader(4)], "max_size"))
    assert is_combined(changed)
    assert changed.mode == "max_size"


def test_a_batch_sampler_without_a_size_is_kept() -> None:
    source = DataLoader(TensorDataset(torch.arange(3)), batch_sampler=FixedBatches())
    with pytest.warns(UserWarning, match="has no `batch_size`"):
        assert without_shuffle(source) is source


def test_nothing_is_said_about_good_loaders() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Feed([loader(), Unsized(3)])
