"""How checkpoints are written and read, under the names users import."""

from __future__ import annotations

from fulmen.checkpoint.store import (
    CheckpointIO,
    TorchCheckpointIO,
)
from fulmen.checkpoint.xla import XLACheckpointIO

__all__ = [
    "CheckpointIO",
    "TorchCheckpointIO",
    "XLACheckpointIO",
]
