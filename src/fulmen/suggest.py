"""What a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

_SIMILARITY = 0.6  # of difflib: "max_epoch" and "max_epochs" have 0.95, "gpuu" and "gpu" 0.86, "lr" and "logger" 0.5


def closest(given: object, names: Iterable[str]) -> str | None:
    """The name most like what was given, in any case of letters; None if none is similar."""
    by_lower_case = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(given).lower(), by_lower_case, n=1, cutoff=_SIMILARITY)
    return by_lower_case[found[0]] if found else None


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """A question to be put into a message, with a space in front; empty if no name is similar.

    Args:
        given: What was typed.
        names: What can be typed.
    """
    name = closest(given, names)
    return "" if name is None else f" Did you mean {name!r}?"
