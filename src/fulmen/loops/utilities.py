"""Small helpers of the loops that users call, too."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_finite_loss"]


def check_finite_loss(loss: Tensor | None) -> None:
    """Raises if a loss is not a number, or infinite. Waits for the device of the loss.

    Args:
        loss: The loss, of any shape; None is fine.

    Raises:
        ValueError: Some of it is not finite.

    Example::

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            check_finite_loss(loss)
            return loss
    """
    if loss is not None and not torch.isfinite(loss).all():
        raise ValueError(
            f"The loss returned in `training_step` is {loss.tolist()}. To find the operation that made it so, type"
            " `Trainer(detect_anomaly=True)`."
        )
