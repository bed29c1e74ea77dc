"""SpikeDetection: end training when the loss jumps away from its recent values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.callback import Callback
from fulmen.fabric.utilities.spike import SpikeDetection as FabricSpikeDetection

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["SpikeDetection"]


class SpikeDetection(FabricSpikeDetection, Callback):
    """Ends training with a ``TrainingSpikeException`` when the loss spikes, and writes down which batches to leave out.

    Looks at the loss after each training batch, which waits for the device. Arguments and attributes are those of
    ``fulmen.fabric.utilities.SpikeDetection``.
    """

    def on_train_batch_end(  # type: ignore[override]  # of the two bases, this is the hook of a callback
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the loss of the batch; a batch that was skipped has none."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            super().on_train_batch_end(trainer, loss, batch, batch_idx)  # type: ignore[arg-type]
