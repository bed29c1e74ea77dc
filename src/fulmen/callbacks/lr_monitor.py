"""LearningRateMonitor: what the optimizers' learning rates are in the course of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["LearningRateMonitor"]


@dataclass(frozen=True)
class _Watched:
    """An optimizer, the name it is logged under, and when.

    Attributes:
        interval: That of the scheduler; "any" for an optimizer without one.
    """

    name: str
    optimizer: Optimizer
    interval: str


class LearningRateMonitor(Callback):
    """Logs the learning rate (and momentum, and weight decay) of every optimizer to all loggers.

    The name is that of the scheduler's configuration (``{"scheduler": ..., "name": "my_rate"}``), else
    ``lr-<OptimizerClass>``; more of the same name get ``-1``, ``-2``. With several parameter groups each has its own,
    ``<name>/pg1``, or ``<name>/<group>`` where a group has a key "name".

    Args:
        logging_interval: "step" or "epoch" logs all of them at that time. None logs each scheduler by its own interval;
            an optimizer without scheduler is then logged by both.
        log_momentum: Whether to log ``<name>-momentum`` (for Adam and its like, the first beta).
        log_weight_decay: Whether to log ``<name>-weight_decay``.
        log_key_prefix: Put before every name.

    Attributes:
        lrs: Learning rates logged so far, by name.
        last_momentum_values: The last value by ``<name>-momentum``, None before the first or when not logged.
        last_weight_decay_values: The last value by ``<name>-weight_decay``, likewise.

    Raises:
        MisconfigurationException: ``logging_interval`` is none of the above, the trainer has no logger, or an optimizer
            has two parameter groups of the same name.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        super().__init__()
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"`LearningRateMonitor(logging_interval={logging_interval!r})`: expected 'step', 'epoch', or None"
                " (each scheduler by its own interval).",
                subject=logging_interval,
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.log_key_prefix = log_key_prefix
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}
        self._by_step: list[_Watched] = []
        self._by_epoch: list[_Watched] = []

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Batches are of no interest when nothing is logged by step."""
        if hook == "on_train_batch_start":
            return self.logging_interval != "epoch" and trainer.logs_by_step
        return True

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Finds out what is to be logged, and when."""
        if not trainer.loggers:
            raise MisconfigurationException(
                "`LearningRateMonitor` needs a logger to write to, and this trainer has none."
                " Use `Trainer(logger=True)`, or remove the callback.",
                subject=self,
            )
        watched = self._watch(trainer)
        self._warn_without_momentum(watched)
        chosen = self.logging_interval
        self._by_step = [one for one in watched if (chosen or one.interval) in ("step", "any")]
        self._by_epoch = [one for one in watched if (chosen or one.interval) in ("epoch", "any")]
        names = [name for one in watched for name in _group_names(one)]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {f"{name}-momentum": None for name in names}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in names}

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Logs what is logged by step, when loggers are due."""
        if self._by_step and trainer.logs_step(trainer.logging_step):
            self._log(trainer, self._by_step)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Logs what is logged by epoch."""
        if self._by_epoch:
            self._log(trainer, self._by_epoch)

    def _watch(self, trainer: Trainer) -> list[_Watched]:
        """All schedulers, then the optimizers that have none."""
        found: list[tuple[str | None, Optimizer, str]] = [
            (config.name, config.scheduler.optimizer, config.interval) for config in trainer.lr_scheduler_configs
        ]
        scheduled = [optimizer for _, optimizer, _ in found]
        found += [
            (None, optimizer, "any")
            for optimizer in trainer.optimizers
            if not any(optimizer is other for other in scheduled)
        ]
        seen: Counter[str] = Counter()
        watched = []
        for given, optimizer, interval in found:
            if not any("lr" in group for group in optimizer.param_groups):
                continue
            name = (self.log_key_prefix or "") + (given or f"lr-{type(optimizer).__name__}")
            unique = f"{name}-{seen[name]}" if seen[name] else name
            seen[name] += 1
            watched.append(_Watched(unique, optimizer, interval))
        return watched

    def _warn_without_momentum(self, watched: list[_Watched]) -> None:
        groups = [group for one in watched for group in one.optimizer.param_groups]
        if self.log_momentum and any(_momentum(group) is None for group in groups):
            rank_zero_warn(
                "`LearningRateMonitor(log_momentum=True)`: some optimizers have no momentum; 0 is logged for them.",
                category=RuntimeWarning,
            )

    def _log(self, trainer: Trainer, watched: list[_Watched]) -> None:
        values: dict[str, float] = {}
        for one in watched:
            values.update(self._read(one))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.logging_step)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: torch.tensor(value, device=device) for name, value in values.items()})

    def _read(self, one: _Watched) -> dict[str, float]:
        """The values of one optimizer now, also kept in the attributes."""
        names = _group_names(one)
        if len(names) > 1 and one.name in self.lrs:
            # The optimizer got a second group since training began: what had no group name is the first group's.
            self.lrs[names[0]] = self.lrs.pop(one.name)
        values: dict[str, float] = {}
        for name, group in zip(names, one.optimizer.param_groups, strict=True):
            values[name] = float(group["lr"])
            self.lrs.setdefault(name, []).append(values[name])
            if self.log_momentum:
                momentum = float(_momentum(group) or 0)
                values[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = momentum
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0))
                values[f"{name}-weight_decay"] = self.last_weight_decay_values[f"{name}-weight_decay"] = decay
        return values


def _group_names(one: _Watched) -> list[str]:
    """What the optimizer's parameter groups are logged as."""
    groups = one.optimizer.param_groups
    given = [group["name"] for group in groups if group.get("name") is not None]
    twice = sorted(str(name) for name, count in Counter(given).items() if count > 1)
    if twice:
        raise MisconfigurationException(
            f"`LearningRateMonitor`: {one.name} has several parameter groups named {', '.join(map(repr, twice))}."
            " Give each group of an optimizer its own `name`, or none.",
            subject=one.optimizer,
        )
    if len(groups) == 1 and not given:
        return [one.name]
    return [f"{one.name}/{group.get('name') or f'pg{place}'}" for place, group in enumerate(groups, start=1)]


def _momentum(group: dict[str, Any]) -> Any:
    """The momentum of a parameter group, or the first of its betas; None if it has neither."""
    return group["betas"][0] if "betas" in group else group.get("momentum")
