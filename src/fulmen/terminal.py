"""What the output goes to: a terminal that can redraw, a notebook, or a plain stream such as a log file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["can_redraw", "in_notebook", "is_terminal", "make_console"]

_PLAIN_WIDTH = 160


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether `stream` (standard output if None) is a terminal that understands control codes."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("TERM", "") in ("dumb", "unknown"):
        return False
    # A closed stream raises ValueError; objects that only have `write` lack the method.
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def can_redraw(stream: TextIO | None = None) -> bool:
    """Whether what was drawn can be drawn over: on a terminal and in a notebook."""
    return in_notebook() or is_terminal(stream)


def make_console(**kwargs: Any) -> Console:
    """A rich console for standard output that writes no control code to anything that is not a terminal.

    Args:
        **kwargs: Arguments of `rich.console.Console`; they win over the ones chosen here.
    """
    from rich.console import Console

    if not can_redraw(kwargs.get("file")):
        kwargs = {"force_terminal": False, "no_color": True, "width": _PLAIN_WIDTH} | kwargs
    return Console(**kwargs)
