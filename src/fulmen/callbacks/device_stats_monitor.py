"""DeviceStatsMonitor: what the devices have to do in the course of training."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.fabric.accelerators import get_cpu_stats

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["DeviceStatsMonitor"]


class DeviceStatsMonitor(Callback):
    """Logs numbers about the device before and after each batch of training, validation and test.

    They are those of ``trainer.accelerator.get_device_stats``: for CUDA ``torch.cuda.memory_stats``, for the CPU the
    memory and processor time in use, in percent. Their names are ``DeviceStatsMonitor.on_train_batch_start/<stat>`` and
    so on. They are logged when the metrics of the step are; in validation and test for every so many batches
    (``log_every_n_steps``).

    Args:
        cpu_stats: On another device than the CPU, True also logs what ``get_cpu_stats`` gives. On the CPU, False logs
            nothing.
        filter_keys: Which stats to log, by their names in ``get_device_stats``. None: all.

    Raises:
        MisconfigurationException: (in fit) the trainer has no logger.
        ModuleNotFoundError: (in fit) psutil, which the stats of the CPU come from, is not installed.
    """

    def __init__(self, cpu_stats: bool | None = None, filter_keys: Collection[str] | None = None) -> None:
        super().__init__()
        self._cpu_stats = cpu_stats
        self._filter_keys = filter_keys if filter_keys is None else frozenset(filter_keys)

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Batches are of no interest when nothing is logged."""
        if hook == "setup":
            return True
        return trainer.is_global_zero and trainer.logs_by_step and self._has_stats(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is a logger, and reads the stats once: what is missing shows before training begins."""
        if stage != "fit":
            return
        if not trainer.loggers:
            raise MisconfigurationException(
                "`DeviceStatsMonitor` needs a logger to write to, and this trainer has none."
                " Use `Trainer(logger=True)`, or remove the callback.",
                subject=self,
            )
        if self._has_stats(trainer):
            self._read(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_step(trainer.logging_step):
            self._log(trainer, "on_train_batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_step(trainer.logging_step):
            self._log(trainer, "on_train_batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_batch(batch_idx):
            self._log(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_batch(batch_idx):
            self._log(trainer, "on_validation_batch_end")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_batch(batch_idx):
            self._log(trainer, "on_test_batch_start")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the stats, if they are due."""
        if trainer.logs_batch(batch_idx):
            self._log(trainer, "on_test_batch_end")

    def _has_stats(self, trainer: Trainer) -> bool:
        return self._cpu_stats is not False or trainer.strategy.root_device.type != "cpu"

    def _read(self, trainer: Trainer) -> dict[str, Any]:
        device = trainer.strategy.root_device
        stats = dict(trainer.accelerator.get_device_stats(device))
        if self._cpu_stats and device.type != "cpu":
            stats.update(get_cpu_stats())
        if self._filter_keys is None:
            return stats
        return {name: value for name, value in stats.items() if name in self._filter_keys}

    def _log(self, trainer: Trainer, hook: str) -> None:
        stats = self._read(trainer)
        for logger in trainer.loggers if stats else ():
            prefix = f"{type(self).__qualname__}.{hook}{logger.group_separator}"
            logger.log_metrics({prefix + name: value for name, value in stats.items()}, trainer.logging_step)
