from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.callbacks.ranking import admits, best_of, displaced_by_next, fill_in, finite_rank, insert, worst_of

scores = st.lists(st.floats(allow_nan=False, width=32), max_size=30)
modes = st.sampled_from(["min", "max"])


def keep(values: list[float], k: int, mode: str) -> dict[str, float]:
    """What is kept of checkpoints with these scores, saved one after the other."""
    kept: dict[str, float] = {}
    for number, score in enumerate(values):
        if admits(kept, k, mode, score):
            kept = insert(kept, k, mode, str(number), score)
    return kept


@given(scores, st.integers(1, 6), modes)
def test_kept_are_the_best_of_all_seen(values: list[float], k: int, mode: str) -> None:
    kept = keep(values, k, mode)
    assert sorted(kept.values()) == sorted(sorted(values, reverse=mode == "max")[:k])
    assert all(values[int(path)] == score for path, score in kept.items())


@given(scores, modes)
def test_minus_one_keeps_all_and_zero_none(values: list[float], mode: str) -> None:
    assert list(keep(values, -1, mode).values()) == values
    assert keep(values, 0, mode) == {}


@given(scores.filter(bool), st.integers(1, 6), modes)
def test_best_and_worst_bound_what_is_kept(values: list[float], k: int, mode: str) -> None:
    kept = keep(values, k, mode)
    ends = {kept[best_of(kept, mode)], kept[worst_of(kept, mode)]}
    assert ends == {min(kept.values()), max(kept.values())}
    assert kept[best_of(kept, mode)] == (min if mode == "min" else max)(values)


@given(scores, st.integers(1, 6), modes)
def test_only_a_full_ranking_displaces(values: list[float], k: int, mode: str) -> None:
    kept = keep(values, k, mode)
    displaced = displaced_by_next(kept, k, mode)
    assert bool(displaced) == (len(kept) == k)
    assert displaced_by_next(kept, -1, mode) == ""


def test_an_equal_score_is_not_better() -> None:
    assert keep([1.0, 1.0, 1.0], 2, "min") == {"0": 1.0, "1": 1.0}


@pytest.mark.parametrize(("mode", "expected"), [("min", math.inf), ("max", -math.inf)])
def test_nan_ranks_last(mode: str, expected: float) -> None:
    assert finite_rank(torch.tensor([math.nan]), mode).item() == expected
    assert finite_rank(torch.tensor([2.0]), mode).item() == 2.0
    assert not admits({"a": 1.0}, 1, mode, math.nan)


METRICS = {
    "epoch": torch.tensor(3),
    "step": torch.tensor(17),
    "val_loss": torch.tensor(0.125),
    "val/acc": torch.tensor(0.5),
    "loss": 1.5,
    "a.b": 2,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{epoch}-{step}", "epoch=3-step=17"),
        ("{epoch:03d}-{val_loss:.2f}", "epoch=003-val_loss=0.12"),
        ("{val_loss}", "val_loss=0.125"),
        ("{val_loss:.2e}", "val_loss=1.25e-01"),
        ("{val/acc:.3f}", "val/acc=0.500"),
        ("{missing}", "missing=0"),
        ("{missing:.2f}", "missing=0.00"),
        ("{epoch}{step}", "epoch=3step=17"),
        ("loss={loss}", "loss=loss=1.5"),
        ("{a.b:02}", "a.b=02"),
        ("{epoch} {epoch}", "epoch=3 epoch=3"),
    ],
)
def test_fields_of_a_file_name(template: str, expected: str) -> None:
    assert fill_in(template, METRICS, True, "=") == expected


def test_names_are_left_out_when_not_wanted() -> None:
    assert fill_in("e={epoch}-v={val/acc:.2f}", METRICS, False, "=") == "e=3-v=0.50"


def test_a_format_that_does_not_suit_names_field_and_value() -> None:
    with pytest.raises(ValueError, match=r"1\.5 cannot be written as \{loss:d\}.*\{loss:\.2f\}"):
        fill_in("{loss:d}", METRICS, True, "=")


def test_a_field_without_key_is_refused() -> None:
    with pytest.raises(ValueError, match="names no metric"):
        fill_in("{}", METRICS, True, "=")


def test_filling_in_leaves_the_metrics_alone() -> None:
    metrics = {"epoch": 1}
    fill_in("{missing}", metrics, True, "=")
    assert metrics == {"epoch": 1}
