"""What a subclass does beyond the regular work: a loop asks once, and passes by what is not overridden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["overrides", "plain"]

F = TypeVar("F", bound=Callable[..., Any])


def plain(method: F) -> F:
    """Mark a method as one that does nothing beyond the regular work, so that a loop may pass it by."""
    method._plain = method  # type: ignore[attr-defined]  # itself, as `functools.wraps` copies attributes
    return method


def overrides(owner: object, name: str) -> bool:
    """Whether a strategy or precision does something of its own in `name`, so that a loop has to go through it.

    Args:
        owner: The strategy or precision.
        name: A method that is `plain` in its base class: "training_step", "backward", "train_step_context", ...
    """
    method = getattr(type(owner), name)
    return name in vars(owner) or getattr(method, "_plain", None) is not method
