"""EarlyStopping: end training when a metric no longer gets better."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fulmen.callback import Callback
from fulmen.callbacks.monitor import is_logged, missing_metric, validates_once_an_epoch
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_prefixed_message, rank_zero_info, rank_zero_warn
from fulmen.states import TrainerFn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["EarlyStopping", "EarlyStoppingReason"]

log = logging.getLogger("fulmen")


class EarlyStoppingReason(Enum):
    """Why ``EarlyStopping`` ended training."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Ends training when a monitored metric stops improving, passes a threshold, or is not finite.

    The metric is looked at once per validation (or per training epoch); ``patience`` counts these occasions.

    Args:
        monitor: Name of the logged metric.
        min_delta: The least change that counts as an improvement.
        patience: So many checks without improvement end training; 0 and 1 both mean the first one.
        verbose: Whether to report each improvement.
        mode: "min" if the metric is to fall, "max" if it is to rise.
        strict: Whether a missing metric is an error.
        check_finite: Whether NaN or an infinite value ends training.
        stopping_threshold: Training ends when the metric is better than this.
        divergence_threshold: Training ends when the metric is worse than this.
        check_on_train_epoch_end: Whether to check at the end of training epochs instead of at the end of validations.
            None: at the end of training epochs if there is one validation in each, or none at all.
        log_rank_zero_only: Whether only rank 0 reports. Otherwise each rank does, with its number.

    Attributes:
        wait_count: Checks since the last improvement.
        stopped_epoch: The epoch in which training was ended, 0 if it was not.
        best_score: The best value so far, a scalar tensor.
        stopping_reason: An ``EarlyStoppingReason``.
        stopping_reason_message: The reason in words, None if training was not ended.

    Raises:
        MisconfigurationException: ``mode`` is neither "min" nor "max".
        RuntimeError: (while training) the metric was not logged, and ``strict`` is True.
    """

    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}
    after_module: ClassVar[frozenset[str]] = frozenset({"on_train_epoch_end"})

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__()
        if mode not in self.mode_dict:
            raise MisconfigurationException(
                f"`EarlyStopping(mode={mode!r})`: expected 'min' (the metric is to fall) or 'max' (it is to rise).",
                subject=mode,
            )
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end
        self._checks_train_epoch = bool(check_on_train_epoch_end)

    @property
    def state_key(self) -> str:
        """Tells instances apart by metric and mode."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """The comparison that says "is better than"."""
        return self.mode_dict[self.mode]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides whether to check after training epochs or after validations."""
        if self._check_on_train_epoch_end is None:
            self._checks_train_epoch = validates_once_an_epoch(trainer) or not trainer.enable_validation

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the metric, if it is to be checked here."""
        if self._checks_train_epoch and self._is_active(trainer):
            self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the metric, if it is to be checked here."""
        if not self._checks_train_epoch and self._is_active(trainer):
            self._check(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Score, counts, and why training was ended."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; files of before 2.6 hold no reason, those of before 0.10 no score."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict.get("stopped_epoch", 0)
        self.best_score = torch.as_tensor(state_dict.get("best_score", self.best_score))
        self.patience = state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def _is_active(self, trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run

    def _check(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if not is_logged(type(self).__name__, self.monitor, metrics, trainer):
            self._report_missing(metrics)
            return
        reason, message = self.judge(metrics[self.monitor])
        here = reason is not EarlyStoppingReason.NOT_STOPPED
        stops = trainer.strategy.reduce_boolean_decision(here, all=False)
        trainer.should_stop = trainer.should_stop or stops
        if stops and trainer.world_size > 1:
            reason, message = self._share(trainer, here, reason, message)
        if stops:
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason = reason
            self.stopping_reason_message = message or None
        if message and (self.verbose or stops):
            self._report(trainer, message)

    def _share(
        self, trainer: Trainer, here: bool, reason: EarlyStoppingReason, message: str
    ) -> tuple[EarlyStoppingReason, str]:
        """The reason of the first process that has one: those whose metric gave none stop, too."""
        first = torch.tensor(trainer.global_rank if here else trainer.world_size, device=trainer.strategy.root_device)
        source = int(trainer.strategy.reduce(first, None, "min"))
        shared: tuple[EarlyStoppingReason, str] = trainer.strategy.broadcast((reason, message), source)
        return shared

    def judge(self, current: Tensor) -> tuple[EarlyStoppingReason, str]:
        """Decides about the next value of the metric and remembers it if it is the best so far.

        Args:
            current: The value, a tensor with one element.

        Returns:
            The reason to stop (or ``NOT_STOPPED``), and the message for it, for an improvement, or "".
        """
        value = current.detach().squeeze().cpu()
        number, best = value.item(), self.best_score.item()
        if self.check_finite and not math.isfinite(number):
            return EarlyStoppingReason.NON_FINITE_METRIC, (
                f"Monitored metric {self.monitor} = {number} is not finite."
                f" Previous best value was {best:.3f}. Signaling Trainer to stop."
            )
        if self.stopping_threshold is not None and self._is_better(number, self.stopping_threshold):
            return EarlyStoppingReason.STOPPING_THRESHOLD, (
                f"Stopping threshold reached: {self.monitor} = {number} {self.order_dict[self.mode]}"
                f" {self.stopping_threshold}. Signaling Trainer to stop."
            )
        if self.divergence_threshold is not None and self._is_better(self.divergence_threshold, number):
            worse = self.order_dict["max" if self.mode == "min" else "min"]
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, (
                f"Divergence threshold reached: {self.monitor} = {number} {worse}"
                f" {self.divergence_threshold}. Signaling Trainer to stop."
            )
        least = self.min_delta if self.mode == "max" else -self.min_delta
        if self._is_better(number - least, best):
            self.best_score, self.wait_count = value, 0
            return EarlyStoppingReason.NOT_STOPPED, self._improvement(number, best)
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, ""
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, (
            f"Monitored metric {self.monitor} did not improve in the last {self.wait_count} records."
            f" Best score: {best:.3f}. Signaling Trainer to stop."
        )

    def _is_better(self, first: float, second: float) -> bool:
        return first < second if self.mode == "min" else first > second

    def _improvement(self, number: float, before: float) -> str:
        if math.isfinite(before):
            by = f" by {abs(before - number):.3f} >= min_delta = {self.min_delta}"
        else:
            by = ""
        return f"Metric {self.monitor} improved{by}. New best score: {number:.3f}"

    def _report_missing(self, metrics: dict[str, Tensor]) -> None:
        message = missing_metric(type(self).__name__, self.monitor, metrics)
        if self.strict:
            raise RuntimeError(message)
        if self.verbose:
            rank_zero_warn(message, category=RuntimeWarning)

    def _report(self, trainer: Trainer, message: str) -> None:
        if self.log_rank_zero_only or trainer.world_size == 1:
            rank_zero_info(message)
        else:
            log.info(rank_prefixed_message(message, trainer.global_rank))
