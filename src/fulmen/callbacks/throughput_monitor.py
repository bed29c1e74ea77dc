"""ThroughputMonitor: log how many batches, samples and floating-point operations a run does per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.fabric.utilities.throughput import Throughput, compute_dtype, get_available_flops
from fulmen.ranks import WarningCache
from fulmen.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ThroughputMonitor"]


class ThroughputMonitor(Callback):
    """Logs ``<stage>/<metric>`` every ``log_every_n_steps``: totals, and rates over a sliding window of batches.

    The metrics are those of ``fulmen.fabric.utilities.Throughput``. Operations per second and their share of the
    device's peak are among them if the module has an attribute (or property) ``flops_per_batch``, the operations of one
    batch on one device; ``fulmen.fabric.utilities.measure_flops`` finds it out. The time of validations does not count
    as training.

    Times are those at which the host is done with a batch. A GPU may lag behind; over a window that evens out, and the
    run is not slowed down by waiting for it.

    Args:
        batch_size_fn: Number of samples of a batch.
        length_fn: Summed lengths of a batch's samples, e.g. its tokens; None to not count them.
        **kwargs: Passed on to ``Throughput``: ``window_size``, ``separator``, ... ``available_flops`` and
            ``world_size`` are found out if not given.

    Attributes:
        available_flops: The peak of the device; None if it is not known, or before a run.
    """

    def __init__(
        self, batch_size_fn: Callable[[Any], int], length_fn: Callable[[Any], int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.kwargs = kwargs
        self.available_flops: float | None = kwargs.get("available_flops")
        self._stages: dict[RunningStage, _Stage] = {}
        self._validation_start = 0.0
        self._warnings = WarningCache()

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """There is nothing to do where there is no logger to write to."""
        return trainer.is_global_zero and trainer.logs_by_step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out the peak of the device."""
        if "available_flops" not in self.kwargs:
            dtype = compute_dtype(trainer.precision)
            self.available_flops = get_available_flops(trainer.strategy.root_device, dtype)
        self._stages = {}

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of training begins."""
        self._begin(trainer, RunningStage.TRAINING)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Counts a batch, and logs when loggers are due."""
        self._update(pl_module, RunningStage.TRAINING, batch)
        stepped = trainer.fit_loop.batches_that_stepped
        if trainer.fit_loop.closes and trainer.logs_step(stepped):
            self._log(trainer, RunningStage.TRAINING, stepped)

    # ------------------------------------------------------------------------------------------------ evaluation

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of a validation begins."""
        self._validation_start = time.perf_counter()
        if not trainer.sanity_checking:
            self._begin(trainer, RunningStage.VALIDATING)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Takes the time of the validation out of that of training."""
        training = self._stages.get(RunningStage.TRAINING)
        if training is not None and trainer.state.fn == TrainerFn.FITTING:
            training.start += time.perf_counter() - self._validation_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Counts a batch, and logs when due."""
        if not trainer.sanity_checking:
            self._evaluated(trainer, pl_module, RunningStage.VALIDATING, batch)

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of a test begins."""
        self._begin(trainer, RunningStage.TESTING)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Counts a batch, and logs when due."""
        self._evaluated(trainer, pl_module, RunningStage.TESTING, batch)

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """The time of a prediction begins."""
        self._begin(trainer, RunningStage.PREDICTING)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Counts a batch, and logs when due."""
        self._evaluated(trainer, pl_module, RunningStage.PREDICTING, batch)

    # ------------------------------------------------------------------------------------------------ counting

    def _begin(self, trainer: Trainer, stage: RunningStage) -> None:
        before = self._stages.get(stage)
        arguments = {"world_size": trainer.world_size, **self.kwargs, "available_flops": self.available_flops}
        self._stages[stage] = _Stage(Throughput(**arguments), before.logged if before is not None else 0)

    def _update(self, pl_module: LightningModule, stage: RunningStage, batch: Any) -> None:
        counts = self._stages[stage]
        counts.batches += 1
        counts.samples += self.batch_size_fn(batch)
        if self.length_fn is not None:
            counts.lengths += self.length_fn(batch)
        flops = getattr(pl_module, "flops_per_batch", None)
        if flops is None:
            self._warnings.warn(
                f"`ThroughputMonitor`: {type(pl_module).__name__} has no `flops_per_batch`, so operations per second"
                " are not logged. Set it in `__init__`; `fulmen.fabric.utilities.measure_flops` finds it out."
            )
        counts.throughput.update(
            time=time.perf_counter() - counts.start,
            batches=counts.batches,
            samples=counts.samples,
            lengths=None if self.length_fn is None else counts.lengths,
            flops=flops,
        )

    def _evaluated(self, trainer: Trainer, pl_module: LightningModule, stage: RunningStage, batch: Any) -> None:
        self._update(pl_module, stage, batch)
        counts = self._stages[stage]
        counts.logged += 1
        if trainer.logs_batch(counts.batches - 1):
            self._log(trainer, stage, counts.logged)

    def _log(self, trainer: Trainer, stage: RunningStage, step: int) -> None:
        throughput = self._stages[stage].throughput
        metrics = {f"{stage.value}{throughput.separator}{name}": x for name, x in throughput.compute().items()}
        trainer.log_metrics(metrics, step, with_epoch=stage is RunningStage.TRAINING)


class _Stage:
    """The totals of one stage since it began.

    Attributes:
        start: When it began, in seconds; moved on by the time that does not count.
        logged: Batches over all validations of a fit, the x value of their logs.
    """

    def __init__(self, throughput: Throughput, logged: int) -> None:
        self.throughput = throughput
        self.start = time.perf_counter()
        self.batches = self.samples = self.lengths = 0
        self.logged = logged
