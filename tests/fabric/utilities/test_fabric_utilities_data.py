import os

import pytest
from torch.utils.data import DataLoader, IterableDataset

from fulmen.fabric.utilities.data import has_iterable_dataset, has_len, sized_len, suggested_max_num_workers


class Stream(IterableDataset):
    def __iter__(self):
        yield 1


class SizedStream(Stream):
    def __len__(self):
        return 5


def test_length():
    assert sized_len(DataLoader([1, 2])) == 2
    assert sized_len(DataLoader(Stream())) is None
    assert sized_len(iter([1])) is None
    assert has_len([1])
    assert not has_len(DataLoader(Stream()))


def test_lengths_that_may_not_be_meant():
    with pytest.warns(UserWarning, match="`list` has the length 0"):
        assert has_len([])
    with pytest.warns(UserWarning, match="An `IterableDataset` has `__len__`"):
        assert has_len(DataLoader(SizedStream()))


def test_iterable_datasets():
    assert has_iterable_dataset(DataLoader(Stream()))
    assert not has_iterable_dataset(DataLoader([1]))
    assert not has_iterable_dataset([1])


def test_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [suggested_max_num_workers(n) for n in (1, 2, 4, 100)] == [7, 3, 1, 1]
    with pytest.raises(ValueError, match="at least 1 process"):
        suggested_max_num_workers(0)


def test_workers_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert suggested_max_num_workers(1) == 3
