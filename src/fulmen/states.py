"""Where a Trainer is: the function it was asked for, the stage it is in, and how that is going."""

from __future__ import annotations

from dataclasses import dataclass

from fulmen.types import CaselessEnum

__all__ = ["RestartStage", "RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]


class TrainerStatus(CaselessEnum):
    """How the run is going."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether the run has ended, one way or the other."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)


class TrainerFn(CaselessEnum):
    """What the user asked the Trainer for."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(CaselessEnum):
    """What is running now; one `fit` passes through several stages."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Whether metrics are being measured without training."""
        return self in (RunningStage.SANITY_CHECKING, RunningStage.VALIDATING, RunningStage.TESTING)

    @property
    def dataloader_prefix(self) -> str:
        """The first part of `<prefix>_dataloader`, the hook this stage's data come from."""
        return "val" if self in (RunningStage.VALIDATING, RunningStage.SANITY_CHECKING) else self.value


class RestartStage:
    """Where in the loops a fit went on from its checkpoint."""

    NONE = "none"
    """Nowhere: it began at the beginning."""
    RESTARTED_ON_EPOCH_START = "restarted_on_epoch_start"
    """At the first epoch, of which no batch had been trained."""
    RESTARTED_MID_EPOCH = "restarted_mid_epoch"
    """Within an epoch, after a batch or the validation that followed it."""
    RESTARTED_ON_TRAIN_BATCH_END = "restarted_on_train_batch_end"
    """At the end of a batch, of which what follows the step is made up for."""
    RESTARTED_ON_LAST = "restarted_on_last"
    """At the end of an epoch's last batch, likewise."""
    RESTARTED_MID_EVALUATION = "restarted_mid_evaluation"
    """In a validation, which begins anew."""
    RESTARTED_ON_EPOCH_END = "restarted_on_epoch_end"
    """At the end of an epoch, of which schedulers that wait for it are made up for."""
    RESUMED_ON_EPOCH_END = "resumed_on_epoch_end"
    """After a whole epoch, with the next one."""


@dataclass
class TrainerState:
    """Status, function and stage of a Trainer.

    Args:
        status: How the run is going.
        fn: What was asked for; None before the first run.
        stage: What is running now; None between runs.
    """

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        """Whether the last run came to its regular end."""
        return self.status is TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether the last run has ended, one way or the other."""
        return self.status.stopped
