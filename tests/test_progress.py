from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.progress import MARKS, Counts, Progress

counts = st.integers(min_value=0, max_value=1000)


def test_a_new_progress_is_at_zero() -> None:
    progress = Progress()
    zero = dict.fromkeys(MARKS, 0)
    assert progress.state_dict() == {"total": zero, "current": zero}


def test_marks_are_counted_one_by_one() -> None:
    progress = Progress()
    progress.current.ready += 2
    progress.current.processed += 1
    assert progress.state_dict()["current"] == {"ready": 2, "completed": 0, "started": 0, "processed": 1}
    assert progress.total == progress.current


def test_a_new_round_keeps_the_total() -> None:
    progress = Progress()
    progress.current.ready = 3
    current = progress.begin()
    assert current is progress.current
    current.ready += 2
    assert (progress.current.ready, progress.total.ready) == (2, 5)
    progress.reset()
    assert (progress.current.ready, progress.total.ready) == (0, 0)


def test_total_can_start_over_with_the_next_round() -> None:
    progress = Progress()
    progress.current.ready = 3
    progress.begin().ready = 4
    progress.forget_total()
    assert (progress.current.ready, progress.total.ready) == (4, 0)
    progress.begin().ready = 2
    assert progress.total.ready == 2


def test_counts_can_be_set_and_added() -> None:
    counts = Counts()
    counts.set(4)
    assert counts == Counts(4, 4, 4, 4)
    assert counts.plus(Counts(1, 2, 3, 4)) == Counts(5, 6, 7, 8)


@given(st.lists(st.tuples(counts, counts, counts, counts), max_size=4))
def test_total_is_the_sum_of_the_rounds(rounds: list[tuple[int, ...]]) -> None:
    progress = Progress()
    for marks in rounds:
        progress.begin()
        progress.current = Counts(*marks)
    assert progress.total == Counts(*(sum(marks) for marks in zip(*rounds, strict=True))) if rounds else Counts()


@given(st.tuples(counts, counts, counts, counts), st.tuples(counts, counts, counts, counts))
def test_state_comes_back(earlier: Any, now: Any) -> None:
    progress, other = Progress(), Progress()
    progress.current = Counts(*earlier)
    progress.begin()
    progress.current = Counts(*now)
    other.load_state_dict(progress.state_dict())
    assert (other.current, other.total) == (progress.current, progress.total)
    assert repr(other) == repr(progress)


@pytest.mark.parametrize("missing", ["started", "processed"])
def test_a_mark_that_an_older_file_lacks_counts_as_completed(missing: str) -> None:
    marks = {mark: 5 for mark in MARKS if mark != missing}
    progress = Progress()
    progress.load_state_dict({"total": marks, "current": {**marks, "completed": 3}})
    assert (getattr(progress.current, missing), getattr(progress.total, missing)) == (3, 5)
