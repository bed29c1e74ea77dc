"""The tuner: looks for a good learning rate and for the largest batch size before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.tuner.tuning import Tuner

__all__ = ["Tuner"]

__getattr__ = importing(__name__, {"Tuner": "fulmen.tuner.tuning"})


def __dir__() -> list[str]:
    return sorted(__all__)
