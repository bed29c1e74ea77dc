from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fulmen.data import CombinedLoader
from fulmen.data.combined import combined_length

MODES = ["min_size", "max_size_cycle", "max_size", "sequential"]
Pair = namedtuple("Pair", ["left", "right"])


class Unsized:
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class Stateful:
    def __init__(self) -> None:
        self.state = {"n": 1}

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state


def short_and_long(mode: str) -> CombinedLoader:
    return CombinedLoader({"a": range(2), "b": range(10, 14)}, mode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [(0, 10), (1, 11)]),
        ("max_size_cycle", [(0, 10), (1, 11), (0, 12), (1, 13)]),
        ("max_size", [(0, 10), (1, 11), (None, 12), (None, 13)]),
    ],
)
def test_modes_that_draw_at_once(mode: str, expected: list[Any]) -> None:
    combined = short_and_long(mode)
    for _ in range(2):
        assert list(combined) == [({"a": a, "b": b}, index, 0) for index, (a, b) in enumerate(expected)]
    assert len(combined) == len(expected)


def test_sequential() -> None:
    combined = short_and_long("sequential")
    expected = [(0, 0, 0), (1, 1, 0), (10, 0, 1), (11, 1, 1), (12, 2, 1), (13, 3, 1)]
    assert list(combined) == expected
    assert len(combined) == 6


def test_sequential_starts_a_loader_when_it_is_its_turn() -> None:
    started = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __iter__(self) -> Iterator[int]:
            started.append(self.name)
            return iter(range(2))

    iterator = iter(CombinedLoader([Noted("a"), Noted("b")], "sequential"))
    next(iterator)
    assert started == ["a"]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), mode=st.sampled_from(MODES))
def test_the_length_is_the_number_of_items(lengths: list[int], mode: str) -> None:
    combined = CombinedLoader([range(length) for length in lengths], mode)
    items = list(combined)
    assert len(items) == len(combined) == combined_length(list(lengths), mode)
    if mode != "sequential":
        assert [batch_idx for _, batch_idx, _ in items] == list(range(len(items)))


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    limits=st.lists(st.integers(0, 7), min_size=2, max_size=2),
    mode=st.sampled_from(MODES),
)
def test_limits_hold_for_each_iterable(lengths: list[int], limits: list[int], mode: str) -> None:
    combined = CombinedLoader([range(length) for length in lengths], mode)
    combined.limits = list(limits)
    assert len(list(combined)) == len(combined) == combined_length(list(map(min, lengths, limits)), mode)


def test_setting_limits() -> None:
    combined = short_and_long("min_size")
    assert combined.limits is None
    combined.limits = 3
    assert combined.limits == [3, 3]
    combined.limits = inf
    assert combined.limits == [inf, inf]
    combined.limits = None
    assert combined.limits is None
    with pytest.raises(ValueError, match=r"number of limits \(1\) and number of iterables \(2\)"):
        combined.limits = [1]
    with pytest.raises(ValueError, match=r"are numbers of batches, got 0.5.*limit_train_batches=0.5"):
        combined.limits = [1, 0.5]
    assert combined.limits is None
    combined.limits = 2.0
    assert len(list(combined)) == len(combined) == 2


def test_length_needs_an_iterator() -> None:
    combined = short_and_long("min_size")
    with pytest.raises(RuntimeError, match=r"Please call `iter\(combined_loader\)` first"):
        len(combined)
    with pytest.raises(RuntimeError, match="first"):
        next(combined)
    iter(combined)
    assert len(combined) == 2
    combined.reset()
    with pytest.raises(RuntimeError, match="first"):
        len(combined)


def test_unknown_lengths() -> None:
    combined = CombinedLoader([Unsized(2), range(3)], "min_size")
    iter(combined)
    assert len(combined) == 3
    combined = CombinedLoader([Unsized(2), range(3)], "max_size")
    iter(combined)
    with pytest.raises(TypeError, match="length is not known"):
        len(combined)
    assert len(list(combined)) == 3


def test_an_empty_iterable_among_others() -> None:
    assert list(CombinedLoader([range(0), range(2)], "sequential")) == [(0, 0, 1), (1, 1, 1)]
    assert list(CombinedLoader([range(0), range(2)], "min_size")) == []
    assert list(CombinedLoader([range(0), range(2)], "max_size_cycle")) == []
    assert [batch for batch, _, _ in CombinedLoader([range(0), range(2)], "max_size")] == [[None, 0], [None, 1]]
    assert list(CombinedLoader([], "sequential")) == []


@pytest.mark.parametrize(
    "iterables",
    [
        range(2),
        [range(2), [range(3)]],
        (range(2),),
        {"a": range(2), "b": {"c": (range(3), range(4))}},
        Pair(range(2), [range(3)]),
        OrderedDict(z=range(2), a=range(3)),
        defaultdict(list, {"a": range(2)}),
    ],
)
def test_batches_have_the_structure_of_the_iterables(iterables: Any) -> None:
    combined = CombinedLoader(iterables)
    batch, _, _ = next(iter(combined))

    def zeros(node: Any) -> Any:
        if isinstance(node, range):
            return 0
        if isinstance(node, dict):
            return {key: zeros(child) for key, child in node.items()}
        values = [zeros(child) for child in node]
        return type(node)(*values) if isinstance(node, Pair) else type(node)(values)

    assert type(batch) is (int if isinstance(iterables, range) else type(iterables))
    assert zeros(iterables) == batch
    if isinstance(batch, defaultdict):
        assert batch["new"] == []


@pytest.mark.parametrize("leaf", [[1, 2, 3], ["a", 1], (1.5, 2), []])
def test_plain_values_are_one_iterable(leaf: Any) -> None:
    assert CombinedLoader(leaf).flattened == [leaf]
    assert CombinedLoader({"x": leaf, "y": range(2)}).flattened == [leaf, range(2)]


def test_setting_flattened() -> None:
    combined = CombinedLoader({"a": range(2), "b": [range(3)]})
    combined.flattened = [range(5), range(6)]
    assert combined.iterables == {"a": range(5), "b": [range(6)]}
    assert len(list(combined)) == 5
    with pytest.raises(ValueError, match=r"flattened length \(1\) and existing length \(2\)"):
        combined.flattened = [range(1)]


def test_samplers_have_the_structure_of_the_iterables() -> None:
    loader = DataLoader(range(3))
    combined = CombinedLoader({"a": loader, "b": [range(3)]})
    assert combined.sampler == {"a": loader.sampler, "b": [None]}
    assert combined.batch_sampler == {"a": loader.batch_sampler, "b": [None]}
    assert isinstance(combined.sampler["a"], SequentialSampler)
    assert isinstance(combined.batch_sampler["a"], BatchSampler)


def test_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="Unsupported mode 'x', please select one of"):
        CombinedLoader(range(3), "x")


def test_reset_ends_persistent_workers() -> None:
    loader = DataLoader(range(3), num_workers=1, persistent_workers=True)
    combined = CombinedLoader([loader])
    next(iter(combined))
    (worker,) = loader._iterator._workers
    combined.reset()
    worker.join(5)
    assert not worker.is_alive()
    assert loader._iterator is None


def test_states_of_the_iterables_that_have_one() -> None:
    stateful = Stateful()
    combined = CombinedLoader([range(3), stateful])
    assert combined._state_dicts() == [{"n": 1}]
    combined._load_state_dicts([{"n": 5}])
    assert stateful.state == {"n": 5}
    with pytest.raises(RuntimeError, match="states of 2 loaders, but 1 of the loaders here"):
        combined._load_state_dicts([{}, {}])
