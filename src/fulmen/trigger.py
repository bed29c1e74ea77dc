"""`Every`: the one way to say "when". `duration_seconds`: the ways to say "how long"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fulmen.errors import MisconfigurationException

__all__ = ["Every", "duration_seconds"]

_COUNTED = ("steps", "batches", "samples", "epochs")
_UNITS = (*_COUNTED, "seconds")
_NUMBER_AND_UNIT = re.compile(r"\s*(?P<number>\d[\d_]*(?:\.\d+)?)\s*(?P<unit>[a-z]+)\s*", re.IGNORECASE)
_CLOCK = re.compile(r"(\d+):(\d+):(\d+):(\d+)")
_COUNTED_WORDS = {word: unit for unit in _COUNTED for word in (unit, unit.removesuffix("s"))} | {"batch": "batches"}
_SECONDS_IN = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}


@dataclass(frozen=True, repr=False)
class Every:
    """How often something happens, in exactly one unit.

    All spellings:

        Every(steps=500)             every 500 optimizer steps
        Every(batches=100)           every 100 batches
        Every(samples=10_000)        every 10,000 samples
        Every(epochs=1)              every epoch
        Every(seconds=7200)          every two hours
        Every.parse("500 steps")     also "100 batches", "10_000 samples", "1 epoch"
        Every.parse("2 h")           also "30 s", "15 min", "1.5 hours", "1 day"
        Every.parse("00:02:00:00")   days:hours:minutes:seconds
        Every.parse(timedelta(hours=2))
        Every.parse({"hours": 2})    arguments of timedelta

    Raises:
        MisconfigurationException: No unit or several, a count that is not a whole number >= 1, or no positive time.
    """

    steps: int | None = None
    batches: int | None = None
    samples: int | None = None
    epochs: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {unit: value for unit in _UNITS if (value := getattr(self, unit)) is not None}
        if len(given) != 1:
            raise MisconfigurationException(
                f"`Every` takes exactly one of {', '.join(_UNITS)}, got {given or 'none'}. Type for instance: "
                f"Every(steps=500)",
                subject=given,
            )
        (unit, value) = next(iter(given.items()))
        if not _is_valid(unit, value):
            expected = "a positive number" if unit == "seconds" else "a whole number of at least 1"
            raise MisconfigurationException(f"`Every({unit}=...)` takes {expected}, got {value!r}.", subject=value)

    @classmethod
    def parse(cls, value: Every | str | timedelta | Mapping[str, float]) -> Every:
        """Read any of the spellings listed at the class; an `Every` is returned as it is.

        Raises:
            MisconfigurationException: None of the spellings.
        """
        if isinstance(value, Every):
            return value
        if isinstance(value, str) and (match := _NUMBER_AND_UNIT.fullmatch(value)):
            return cls._from_words(value, match["number"].replace("_", ""), match["unit"].lower())
        if (isinstance(value, str) and _CLOCK.fullmatch(value.strip())) or isinstance(value, (timedelta, Mapping)):
            return cls(seconds=duration_seconds(value))
        raise _not_a_trigger(value)

    @classmethod
    def _from_words(cls, text: str, number: str, word: str) -> Every:
        if word in _SECONDS_IN:
            return cls(seconds=float(number) * _SECONDS_IN[word])
        if word in _COUNTED_WORDS and number.isdecimal():
            return cls(**{_COUNTED_WORDS[word]: int(number)})
        raise _not_a_trigger(text)

    @property
    def unit(self) -> str:
        """The name of the field that is set."""
        return next(unit for unit in _UNITS if getattr(self, unit) is not None)

    @property
    def interval(self) -> float:
        """The value of the field that is set."""
        interval: float = getattr(self, self.unit)
        return interval

    def due(self, count: float) -> bool:
        """Whether it is time.

        Args:
            count: How many of the unit are done, counted from 1; for `seconds`, the time since the last occasion.
        """
        if self.seconds is not None:
            return count >= self.seconds
        return count > 0 and count % self.interval == 0

    def __repr__(self) -> str:
        return f"Every({self.unit}={self.interval!r})"


def duration_seconds(value: str | timedelta | Mapping[str, float] | None) -> float | None:
    """Seconds of a duration.

    Args:
        value: "DD:HH:MM:SS", a timedelta, a dict of its arguments such as `{"hours": 2}`, or None.

    Returns:
        Seconds, None for None.

    Raises:
        MisconfigurationException: Another kind of value, or a negative time.
    """
    if value is None:
        return None
    duration = _to_timedelta(value)
    if duration < timedelta(0):
        raise MisconfigurationException(f"A duration cannot be negative, got {value!r}.", subject=value)
    return duration.total_seconds()


def _to_timedelta(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := _CLOCK.fullmatch(value.strip())):
        days, hours, minutes, seconds = map(int, match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if isinstance(value, Mapping):
        try:
            return timedelta(**value)
        except TypeError as error:
            raise _not_a_duration(value) from error
    raise _not_a_duration(value)


def _is_valid(unit: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value > 0 if unit == "seconds" else isinstance(value, int) and value >= 1


def _not_a_trigger(value: object) -> MisconfigurationException:
    return MisconfigurationException(
        f"{value!r} does not say how often. Type for instance: '500 steps', '10_000 samples', '1 epoch', '2 h', "
        f"'00:02:00:00', timedelta(hours=2), or {{'hours': 2}}.",
        subject=value,
    )


def _not_a_duration(value: object) -> MisconfigurationException:
    return MisconfigurationException(
        f"{value!r} is not a duration. Type for instance: '00:02:00:00' (days:hours:minutes:seconds), "
        f"timedelta(hours=2), or {{'hours': 2}}.",
        subject=value,
    )
