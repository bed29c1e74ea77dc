"""BasePredictionWriter: write predictions somewhere, batch by batch or all at the end."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.types import CaselessEnum

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["BasePredictionWriter", "WriteInterval"]


class WriteInterval(CaselessEnum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after each batch."""
        return self in (WriteInterval.BATCH, WriteInterval.BATCH_AND_EPOCH)

    @property
    def on_epoch(self) -> bool:
        """Whether at the end."""
        return self in (WriteInterval.EPOCH, WriteInterval.BATCH_AND_EPOCH)


class BasePredictionWriter(Callback):
    """Base class of callbacks that write what ``trainer.predict`` gives. Override the method that is due, or both.

    If there are more predictions than fit into memory, write "batch" by batch and call
    ``trainer.predict(..., return_predictions=False)``.

    Args:
        write_interval: "batch", "epoch" or "batch_and_epoch".

    Attributes:
        interval: The same, as a ``WriteInterval``.

    Raises:
        MisconfigurationException: ``write_interval`` is none of these.
        NotImplementedError: (when predicting) a method that is due is not overridden.
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        super().__init__()
        if write_interval not in list(WriteInterval):
            raise MisconfigurationException(
                f"`{type(self).__name__}(write_interval={write_interval!r})`: expected 'batch', 'epoch' or"
                " 'batch_and_epoch'.",
                subject=write_interval,
            )
        self.interval = WriteInterval(write_interval)

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """What is not written then is not looked at then."""
        if hook == "on_predict_batch_end":
            return self.interval.on_batch
        return hook != "on_predict_epoch_end" or self.interval.on_epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a step that draws its batches itself, so that nobody knows which samples they hold."""
        if stage == "predict" and "dataloader_iter" in inspect.signature(pl_module.predict_step).parameters:
            raise NotImplementedError(
                f"`{type(self).__name__}` needs to know the samples of each batch, but"
                f" `{type(pl_module).__name__}.predict_step` takes `dataloader_iter` and draws them itself. Write"
                " `def predict_step(self, batch, batch_idx)`."
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the prediction of one batch.

        Args:
            trainer: The run.
            pl_module: The module.
            prediction: What ``predict_step`` returned, where it was computed.
            batch_indices: Which samples of the dataset the batch holds; empty where the loader does not tell.
            batch: The batch.
            batch_idx: Its number, for each loader from 0.
            dataloader_idx: The number of the loader.
        """
        raise NotImplementedError(self._not_written("write_on_batch_end"))

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any] | None,
    ) -> None:
        """Writes all predictions.

        Args:
            trainer: The run.
            pl_module: The module.
            predictions: By batch, on the CPU; with several loaders one such list for each.
            batch_indices: For each loader the samples of the dataset in each batch, ``[[[0, 1], [2]]]``; the list of a
                loader that does not tell is empty.
        """
        raise NotImplementedError(self._not_written("write_on_epoch_end"))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Has the batch written."""
        indices = trainer.predict_loop.current_batch_indices
        self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has everything written."""
        loop = trainer.predict_loop
        self.write_on_epoch_end(trainer, pl_module, loop.predictions, loop.epoch_batch_indices)

    def _not_written(self, method: str) -> str:
        return (
            f"`{type(self).__name__}(write_interval={self.interval.value!r})` needs `{method}`, which it does not"
            " define. Override it, or choose another `write_interval`."
        )
