"""Collectives of a single process: everybody is here already, so that each gives back what it gets.

The names and arguments are those of the strategies' methods.
"""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["all_gather", "barrier", "broadcast", "reduce", "reduce_boolean_decision"]

T = TypeVar("T")


def barrier(name: str | None = None) -> None:
    """Wait until all processes are here."""


def broadcast(obj: T, src: int = 0) -> T:
    """The object of the process of rank `src`."""
    return obj


def all_gather(tensor: T, group: Any = None, sync_grads: bool = False) -> T:
    """The tensors of all processes."""
    return tensor


def reduce(tensor: T, group: Any = None, reduce_op: Any = "mean") -> T:
    """The mean, sum or other reduction over all processes."""
    return tensor


def reduce_boolean_decision(decision: bool, all: bool = True) -> bool:
    """Whether all (or any) of the processes decided for it."""
    return decision
