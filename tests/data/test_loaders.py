"""Facts about single loaders and the advice given about them."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from fulmen.data import hint_workers, shuffles
from fulmen.data.loaders import copy_with, length_of, samples_in
from fulmen.errors import PossibleUserWarning

DATA = TensorDataset(torch.arange(6))


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch._utils, "cpu_count", lambda: 8, raising=False)  # not there before torch 2.12


def messages(loader: Any, **kwargs: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hint_workers(loader, "train", **kwargs)
    return caught


@pytest.mark.usefixtures("eight_cpus")
def test_few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    (hint,) = messages(DataLoader(DATA))
    assert hint.category is PossibleUserWarning
    assert "num_workers=7" in str(hint.message)
    assert not messages(DataLoader(DATA, num_workers=2))
    assert not messages([DATA])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert not messages(DataLoader(DATA))


@pytest.mark.usefixtures("eight_cpus")
def test_spawned_workers_that_do_not_stay() -> None:
    (hint,) = messages(DataLoader(DATA, num_workers=2, multiprocessing_context="spawn"))
    assert hint.category is UserWarning
    assert "persistent_workers=True" in str(hint.message)
    spawned = {"num_workers": 2, "multiprocessing_context": "spawn"}
    assert not messages(DataLoader(DATA, persistent_workers=True, **spawned))


@pytest.mark.usefixtures("eight_cpus")
def test_pinned_memory_and_reloading() -> None:
    loader = DataLoader(DATA, num_workers=2, persistent_workers=True, pin_memory=True)
    assert not messages(loader)
    (hint,) = messages(loader, reloading=True)
    assert hint.category is PossibleUserWarning


def test_shuffles() -> None:
    assert shuffles(DataLoader(DATA, shuffle=True))
    assert shuffles(DataLoader(DATA, sampler=SubsetRandomSampler([1, 2])))
    assert shuffles(DataLoader(DATA, sampler=torch.utils.data.DistributedSampler(DATA, 2, 0)))
    assert not shuffles(DataLoader(DATA, sampler=torch.utils.data.DistributedSampler(DATA, 2, 0, shuffle=False)))
    assert not shuffles(DataLoader(DATA))
    assert not shuffles([1, 2])


def test_copies_share_everything_but_what_is_changed() -> None:
    loader = DataLoader(DATA, 2)
    twin = copy_with(loader, batch_sampler=[[5], [0, 1]])
    assert [batch[0].tolist() for batch in twin] == [[5], [0, 1]]
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    assert twin.dataset is loader.dataset


def test_lengths() -> None:
    assert length_of(DataLoader(DATA, 4)) == 2
    assert length_of(iter([1])) == float("inf")


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        (torch.tensor(1.0), 1),
        (["text", {"x": (torch.zeros(4), torch.zeros(5))}], 4),
        ({"a": 1, "b": "text"}, None),
        ("text", None),
        ([], None),
    ],
)
def test_samples_in_a_batch(batch: Any, size: int | None) -> None:
    assert samples_in(batch) == size
