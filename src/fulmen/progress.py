"""Progress: how far a loop has come, in plain integers.

A thing that is counted (a batch, an epoch) passes four marks: *ready* (about to start), *started* (its start hooks have
run), *processed* (its work is done), *completed* (its end hooks have run). ``current`` counts since the loop last
began,
``total`` since the start of the fit. Only ``current`` is counted; ``total`` is derived.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MARKS = ("ready", "completed", "started", "processed")


@dataclass(slots=True)
class Counts:
    """How many have passed each mark."""

    ready: int = 0
    completed: int = 0
    started: int = 0
    processed: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sum, mark by mark."""
        return Counts(*(getattr(self, mark) + getattr(other, mark) for mark in MARKS))

    def set(self, count: int) -> None:
        """Puts every mark to ``count``."""
        self.ready = self.started = self.processed = self.completed = count


class Progress:
    """Counts of one loop: ``current`` since the loop last began, ``total`` since the start."""

    __slots__ = ("base", "current")

    def __init__(self) -> None:
        self.current = Counts()
        self.base = Counts()

    @property
    def total(self) -> Counts:
        """Counts since the start of the fit."""
        return self.base.plus(self.current)

    def reset(self) -> None:
        """Forgets everything."""
        self.current = Counts()
        self.base = Counts()

    def begin(self) -> Counts:
        """Starts a new round of ``current``, keeping ``total``; returns the new counts."""
        self.base = self.total
        self.current = Counts()
        return self.current

    def forget_total(self) -> None:
        """Starts ``total`` from zero, leaving ``current`` to its next ``begin``."""
        self.base = Counts(*(-getattr(self.current, mark) for mark in MARKS))

    def state_dict(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return {"total": asdict(self.total), "current": asdict(self.current)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; marks that an older file does not know count as completed."""
        current, total = state["current"], state["total"]
        self.current = Counts(*(int(current.get(mark, current["completed"])) for mark in MARKS))
        totals = [int(total.get(mark, total["completed"])) for mark in MARKS]
        self.base = Counts(*(t - getattr(self.current, mark) for t, mark in zip(totals, MARKS, strict=True)))

    def __repr__(self) -> str:
        return f"Progress(total={self.total}, current={self.current})"
