"""Reading environment variables, with errors that name variable, value and what to type."""

from __future__ import annotations

import os

from fulmen.fabric.errors import ClusterError

__all__ = ["number_in", "text_in"]


def text_in(variable: str, started_by: str) -> str:
    """The value of an environment variable that has to be there.

    Args:
        variable: Its name.
        started_by: What sets it when a process is started the right way: "torchrun", "srun", ...

    Raises:
        ClusterError: It is missing or empty.
    """
    text = os.environ.get(variable, "").strip()
    if not text:
        state = "empty" if variable in os.environ else "missing"
        raise ClusterError(
            f"The environment variable {variable} is {state}. Start the script with {started_by}, which sets it, or "
            f"type: export {variable}=...",
            subject=variable,
        )
    return text


def number_in(variable: str, started_by: str) -> int:
    """The whole number in an environment variable that has to be there.

    Args:
        variable: Its name.
        started_by: What sets it when a process is started the right way: "torchrun", "srun", ...

    Raises:
        ClusterError: It is missing, or holds no whole number.
    """
    text = text_in(variable, started_by)
    try:
        return int(text)
    except ValueError:
        raise ClusterError(
            f"The environment variable {variable}={text!r} has to be a whole number. Type, for instance: "
            f"export {variable}=1",
            subject=variable,
        ) from None
