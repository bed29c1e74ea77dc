"""Which parameters a method takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_param_in_hook_signature"]


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Whether a method takes a parameter, ``self`` not counted.

    Args:
        hook_fx: The method.
        param: Name of the parameter.
        explicit: Whether it must be named; else ``*args`` counts, too.
        min_args: So many parameters count as well, whatever their names.
    """
    taken = inspect.getfullargspec(inspect.unwrap(hook_fx))
    named = taken.args[1:]
    if param in named or (taken.varargs is not None and not explicit):
        return True
    return min_args is not None and len(named) >= min_args
