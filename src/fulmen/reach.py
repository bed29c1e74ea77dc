"""How far a fit can come, and which triggers cannot come due within that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fulmen.errors import PossibleUserWarning
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer
    from fulmen.trigger import Every

__all__ = ["Reach", "never_due", "no_validation", "reach_of", "warn_never_due"]


@dataclass(frozen=True)
class Reach:
    """The most there can be of each unit, counted from the beginning; infinity where that is not known.

    Args:
        steps: Optimizer steps.
        batches: Batches.
        epochs: Epochs that are begun.
    """

    steps: float
    batches: float
    epochs: float

    def of(self, unit: str) -> float:
        """The most of a unit, by the names of ``Every``."""
        known: float = getattr(self, unit, math.inf)
        return known


def reach_of(trainer: Trainer) -> Reach:
    """How far the fit that begins can come, by its limits and the length of its data."""
    fit = trainer.fit_loop
    in_epoch = math.inf if trainer.reload_dataloaders_every_n_epochs else fit.num_batches
    epochs = math.inf if fit.max_epochs in (None, -1) else float(fit.max_epochs or 0)
    batches, steps = in_epoch * epochs, fit.step_limit
    if trainer.lightning_module.automatic_optimization:
        fewest, most = _window(trainer)
        batches = min(batches, fit.step_limit * most)
        steps = min(steps, _ceil(in_epoch / fewest) * epochs)
    if trainer.max_count is not None and trainer.max_count.batches is not None:
        batches = min(batches, trainer.max_count.batches)
    if batches < math.inf > in_epoch:
        epochs = min(epochs, _ceil(batches / in_epoch))
    return Reach(steps, batches, epochs)


def _window(trainer: Trainer) -> tuple[float, float]:
    """How many batches at least and at most are accumulated for a step."""
    from fulmen.callbacks import GradientAccumulationScheduler

    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        return 1, math.inf
    return trainer.accumulate_grad_batches, trainer.accumulate_grad_batches


def _ceil(number: float) -> float:
    return number if number == math.inf else math.ceil(number)


def warn_never_due(trainer: Trainer) -> None:
    """Says so if the fit that begins is too short for validation, or for what the loggers wait for."""
    if trainer.fast_dev_run or trainer.is_trial:
        return
    reach = reach_of(trainer)
    problem = no_validation(trainer, reach)
    if problem is not None:
        waiting = [
            f"`{type(callback).__name__}(monitor={callback.monitor!r})`"  # type: ignore[attr-defined]
            for callback in trainer.callbacks
            if getattr(callback, "monitor", None)
        ]
        hint = f" A metric that is logged in validation is never there for {' and '.join(waiting)}." if waiting else ""
        warn(f"{problem}{hint}")
    if trainer.loggers and trainer.log_every is not None:
        warn(never_due("Trainer", "log_every", trainer.log_every, reach, "no step is logged"))


def warn(problem: str | None) -> None:
    """Warns of a problem, if there is one."""
    if problem is not None:
        rank_zero_warn(problem, category=PossibleUserWarning)


def never_due(owner: str, argument: str, every: Every, reach: Reach, result: str, unit: str = "") -> str | None:
    """The message for a trigger that cannot come due; None for one that can.

    Args:
        owner: The class whose argument it is.
        argument: The argument.
        every: The trigger.
        reach: How far the run can come.
        result: What follows from it.
        unit: The unit, where the argument is a plain number of it; empty for a trigger in any unit.
    """
    most = reach.of(every.unit)
    if every.interval <= most:
        return None
    value, instead = (every.interval, int(most)) if unit else (every, f"{int(most)} {every.unit}")
    return _message(f"{owner}({argument}={value!r})", _count(most, every.unit), result, f"{argument}={instead!r}")


def no_validation(trainer: Trainer, reach: Reach) -> str | None:
    """The message for a validation that cannot come due; None for one that can, and where there is none at all."""
    fit, interval, every = trainer.fit_loop, trainer.val_check_interval, trainer.check_val_every_n_epoch
    result = "no validation takes place"
    if not trainer.enable_validation:
        return None
    if trainer.val_check_every is not None:
        return never_due("Trainer", "val_check_interval", trainer.val_check_every, reach, result)
    if every is None:
        unknown = trainer.val_check_seconds is not None or trainer.val_check_batch == math.inf
        if unknown or trainer.val_check_batch <= reach.batches:
            return None
        given = f"Trainer(val_check_interval={interval!r}, check_val_every_n_epoch=None)"
        return _message(given, _count(reach.batches, "batches"), result, f"val_check_interval={int(reach.batches)}")
    given = f"Trainer(check_val_every_n_epoch={every})"
    if every > reach.epochs:
        return _message(given, _count(reach.epochs, "epochs"), result, f"check_val_every_n_epoch={int(reach.epochs)}")
    is_known = fit.feed is not None and fit.feed.has_length and not trainer.reload_dataloaders_every_n_epochs
    if trainer.val_check_seconds is not None or not is_known:
        return None
    at = trainer.val_check_batch if trainer.val_check_batch < math.inf else fit.num_batches
    if (every - 1) * fit.num_batches + at <= reach.batches:
        return None
    length = f"{_count(reach.batches, 'batches')}, and an epoch has {fit.num_batches}"
    if every > 1:
        return _message(given, length, result, "check_val_every_n_epoch=1")
    given = f"Trainer(val_check_interval={interval!r})"
    return _message(given, length, result, f"val_check_interval={int(reach.batches)}")


def _message(given: str, length: str, result: str, instead: str) -> str:
    return (
        f"`{given}` never comes due: the run has {length}, so {result}. Type `{instead}` (or less), or let it train"
        " longer."
    )


def _count(number: float, unit: str) -> str:
    words: dict[Any, str] = {"steps": "step", "batches": "batch", "epochs": "epoch"}
    return f"{int(number)} {words[unit] if number == 1 else unit}"
