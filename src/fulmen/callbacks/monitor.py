"""What callbacks that watch a metric share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fulmen.errors import MisconfigurationException
from fulmen.fabric.distributed import is_alone

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["is_logged", "missing_metric", "validates_once_an_epoch"]


def is_logged(callback: str, monitor: str, metrics: Mapping[str, Any], trainer: Trainer) -> bool:
    """Whether a monitored metric is there, which all processes have to agree on. All of them must ask.

    Args:
        callback: Name of the callback's class.
        monitor: The name that is looked for.
        metrics: Those of this process.
        trainer: The run.

    Raises:
        MisconfigurationException: Only some of the processes have it.
    """
    is_here = monitor in metrics
    if trainer.world_size == 1:
        return is_here
    having = int(trainer.strategy.reduce(torch.tensor(int(is_here), device=trainer.strategy.root_device), None, "sum"))
    if 0 < having < trainer.world_size and not is_alone():
        raise MisconfigurationException(
            f"`{callback}(monitor={monitor!r})`: {having} of {trainer.world_size} processes have logged this metric;"
            f" rank {trainer.global_rank} has{'' if is_here else ' not'}. Log it on all of them:"
            f" `self.log({monitor!r}, value, sync_dist=True)`."
        )
    return is_here


def missing_metric(callback: str, monitor: str, available: Iterable[str]) -> str:
    """The message for a monitored metric that is not there.

    Args:
        callback: Name of the callback's class.
        monitor: The name that was looked for.
        available: The names that exist at this moment.
    """
    names = sorted(available)
    close = difflib.get_close_matches(monitor, names, n=3, cutoff=0.6)
    listed = ", ".join(repr(name) for name in [*close, *(name for name in names if name not in close)])
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"`{callback}(monitor={monitor!r})`: no metric of this name has been logged.{guess}"
        f" Available now: {listed or 'nothing'}."
        f" Log it, for instance with `self.log({monitor!r}, value)` in `validation_step`, or monitor another one."
    )


def validates_once_an_epoch(trainer: Trainer) -> bool:
    """Whether each training epoch has exactly one validation, at its end.

    An int 1 as ``val_check_interval`` means after every batch, the float 1.0 after the whole epoch.
    """
    interval = trainer.val_check_interval
    return isinstance(interval, float) and interval == 1.0 and trainer.check_val_every_n_epoch == 1
