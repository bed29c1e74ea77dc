"""Doing things on rank 0 only; works before, during and after the life of a process group.

The rank is guessed from the environment when this module is imported, and set again by the strategies once they know
better (`rank_zero_only.rank = 3`). As long as nobody has, a process group that is there knows better than the guess.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from fulmen.errors import LightningDeprecationWarning, PossibleUserWarning

__all__ = [
    "WarningCache",
    "disable_possible_user_warnings",
    "rank_prefixed_message",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "show_information",
]

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")

log = logging.getLogger("fulmen")

# Every public function here has a `stacklevel` whose default names its caller; one more names the caller's caller.
# The defaults (4, 5, 6) are those users know; the frames they count that do not exist here are taken off again.
_UNUSED_FRAMES = 2

_FULMEN = os.path.dirname(__file__) + os.sep


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, which a progress bar may have replaced.

    Once the program has set up logging, its handlers say everything.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if not logging.getLogger().handlers:
            sys.stderr.write(self.format(record) + "\n")


def show_information() -> None:
    """Let the INFO lines of fulmen be seen, unless the program has set up logging itself."""
    if not log.handlers and not logging.getLogger().handlers:
        log.addHandler(_StandardError())
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)


class _Guess(int):
    """A rank that nobody has set yet."""


def _rank_from(environment: Mapping[str, str]) -> _Guess:
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        rank = environment.get(variable, "")
        if rank.isdecimal():  # what is no number was meant for another program
            return _Guess(rank)
    return _Guess(0)


def _is_rank_zero() -> bool:
    rank = rank_zero_only.rank
    if type(rank) is _Guess:
        # not imported for this: the module has to stay cheap, and without torch there is no group
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return bool(distributed.get_rank() == 0)
    return rank == 0


class _RankZeroOnly(Protocol):
    """The type of `rank_zero_only`: a decorator that knows the rank."""

    rank: int

    @overload
    def __call__(self, fn: Callable[P, R]) -> Callable[P, R | None]: ...
    @overload
    def __call__(self, fn: Callable[P, R], default: D) -> Callable[P, R | D]: ...
    def __call__(self, fn: Callable[..., Any], default: Any = None) -> Callable[..., Any]: ...


def _with_rank(decorator: Callable[..., Any]) -> _RankZeroOnly:
    ranked = cast(_RankZeroOnly, decorator)
    ranked.rank = _rank_from(os.environ)
    return ranked


@_with_rank
def rank_zero_only(fn: Callable[..., Any], default: Any = None) -> Callable[..., Any]:
    """Make `fn` run on rank 0 only; the rank is looked up at each call.

    Args:
        fn: The function or method to wrap.
        default: What the other ranks get instead of the result.
    """

    @functools.wraps(fn)
    def only_on_rank_zero(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs) if _is_rank_zero() else default

    return only_on_rank_zero


def rank_zero_info(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a record of level INFO on rank 0; arguments as for `logging.Logger.info`."""
    if _is_rank_zero():
        show_information()
        log.info(*args, stacklevel=stacklevel - _UNUSED_FRAMES, **kwargs)


def rank_zero_debug(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a record of level DEBUG on rank 0; arguments as for `logging.Logger.debug`."""
    if _is_rank_zero():
        log.debug(*args, stacklevel=stacklevel - _UNUSED_FRAMES, **kwargs)


def rank_zero_warn(
    message: str | Warning, stacklevel: int = 4, category: type[Warning] = UserWarning, **kwargs: Any
) -> None:
    """Warn on rank 0.

    Args:
        message: The text, or a ready made warning.
        stacklevel: Which frame the warning names: 4 is the caller, 5 the caller's caller, and so on. Where that is one
            of fulmen or PyTorch, the next one outwards that is not.
        category: Class of the warning.
        **kwargs: Further arguments of `warnings.warn`.
    """
    if _is_rank_zero():
        level = _outside_libraries(stacklevel - _UNUSED_FRAMES)
        warnings.warn(message, category=category, stacklevel=level, **kwargs)


def _outside_libraries(stacklevel: int) -> int:
    """The first level from `stacklevel` on, as counted in the caller, that is a user's frame; else `stacklevel`.

    Who reads a warning looks for a line of their own.
    """
    torch = sys.modules.get("torch")  # not imported for this: the module has to stay cheap
    libraries = (_FULMEN,) if torch is None else (_FULMEN, os.path.dirname(str(torch.__file__)) + os.sep)
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and (level < stacklevel or frame.f_code.co_filename.startswith(libraries)):
        frame, level = frame.f_back, level + 1
    return stacklevel if frame is None else level


def rank_zero_deprecation(message: str, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn on rank 0 with a `LightningDeprecationWarning`; 5 is the caller's `stacklevel`."""
    kwargs.setdefault("category", LightningDeprecationWarning)
    rank_zero_warn(message, stacklevel=stacklevel, **kwargs)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """`message` with the rank in front, so that lines of several processes can be told apart."""
    return message if rank is None else f"[rank: {rank}] {message}"


class WarningCache(set[str]):
    """A memory of what was said, to say it once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """`rank_zero_warn`, unless this message was here before."""
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """`rank_zero_deprecation`, unless this message was here before."""
        if message not in self:
            self.add(message)
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """`rank_zero_info`, unless this message was here before."""
        if message not in self:
            self.add(message)
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)


def disable_possible_user_warnings(module: str = "") -> None:
    """Silence the advice that may not apply (`PossibleUserWarning`).

    The environment variable `POSSIBLE_USER_WARNINGS=off` (or `0`) does the same for a whole process.

    Args:
        module: Regular expression for the modules whose warnings are meant; empty means all.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


if os.environ.get("POSSIBLE_USER_WARNINGS", "").lower() in ("off", "0"):
    disable_possible_user_warnings()
