import pickle
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.errors import MisconfigurationException
from fulmen.trigger import Every, duration_seconds


@pytest.mark.parametrize(
    ("spelling", "every"),
    [
        ("500 steps", Every(steps=500)),
        ("1 step", Every(steps=1)),
        ("100 batches", Every(batches=100)),
        ("1 batch", Every(batches=1)),
        ("10_000 samples", Every(samples=10_000)),
        ("1 epoch", Every(epochs=1)),
        (" 3EPOCHS ", Every(epochs=3)),
        ("30 s", Every(seconds=30)),
        ("15 min", Every(seconds=900)),
        ("15 m", Every(seconds=900)),
        ("2 h", Every(seconds=7200)),
        ("1.5 hours", Every(seconds=5400)),
        ("1 day", Every(seconds=86400)),
        ("01:02:03:04", Every(seconds=93784)),
        (timedelta(hours=2), Every(seconds=7200)),
        ({"minutes": 1, "seconds": 30}, Every(seconds=90)),
        (Every(steps=2), Every(steps=2)),
    ],
)
def test_spellings(spelling, every):
    assert Every.parse(spelling) == every


@pytest.mark.parametrize(
    "nonsense",
    ["", "500", "steps", "1.5 epochs", "3 fortnights", "-1 steps", "1:2:3", 500, None, {"fortnights": 1}, []],
)
def test_nonsense_is_refused_with_what_to_type(nonsense):
    with pytest.raises(MisconfigurationException, match="Type for instance") as raised:
        Every.parse(nonsense)
    assert raised.value.subject == nonsense


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"steps": 1, "epochs": 1},
        {"steps": 0},
        {"steps": -1},
        {"steps": 1.5},
        {"steps": True},
        {"epochs": "1"},
        {"seconds": 0},
        {"seconds": float("nan")},
    ],
)
def test_impossible_triggers_are_refused(arguments):
    with pytest.raises(MisconfigurationException, match="`Every"):
        Every(**arguments)


def test_a_time_of_zero_is_refused():
    with pytest.raises(MisconfigurationException, match="a positive number"):
        Every.parse("00:00:00:00")


@given(st.sampled_from(["steps", "batches", "samples", "epochs"]), st.integers(1, 1000), st.integers(0, 100), st.data())
def test_due_exactly_at_the_multiples(unit, interval, times, data):
    every = Every(**{unit: interval})
    assert every.due(interval * times) == (times > 0)
    if interval > 1:
        assert not every.due(interval * times + data.draw(st.integers(1, interval - 1)))


def test_time_is_due_once_it_has_passed():
    every = Every(seconds=2.5)
    assert [every.due(elapsed) for elapsed in (0.0, 2.4, 2.5, 7.0)] == [False, False, True, True]


@given(st.sampled_from(["steps", "batches", "samples", "epochs"]), st.integers(1, 10**9))
def test_repr_shows_what_to_type(unit, interval):
    every = Every(**{unit: interval})
    assert eval(repr(every)) == every
    assert (every.unit, every.interval) == (unit, interval)
    assert Every.parse(f"{interval:_} {unit}") == every


def test_it_is_a_value():
    every = Every(steps=2)
    assert pickle.loads(pickle.dumps(every)) == every
    assert {every: 1}[Every(steps=2)] == 1
    with pytest.raises(FrozenInstanceError):
        every.steps = 3


@given(st.timedeltas(min_value=timedelta(0)))
def test_durations_of_all_forms_agree(duration):
    duration -= timedelta(microseconds=duration.microseconds)
    hours, rest = divmod(duration.seconds, 3600)
    clock = f"{duration.days:02}:{hours:02}:{rest // 60:02}:{rest % 60:02}"
    seconds = duration.total_seconds()
    assert duration_seconds(duration) == seconds
    assert duration_seconds(clock) == seconds
    assert duration_seconds({"days": duration.days, "seconds": duration.seconds}) == seconds


def test_no_duration():
    assert duration_seconds(None) is None
    assert duration_seconds("00:00:00:00") == 0


@pytest.mark.parametrize(
    "nonsense", ["", "2 h", "01:02:03", "aa:bb:cc:dd", 5, {"fortnights": 1}, timedelta(seconds=-1)]
)
def test_other_durations_are_refused(nonsense):
    with pytest.raises(MisconfigurationException):
        duration_seconds(nonsense)
