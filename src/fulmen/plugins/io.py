"""How checkpoints are written and read, under the names users import."""

from __future__ import annotations

from fulmen.checkpoint.asynchronous import AsyncCheckpointIO
from fulmen.checkpoint.store import CheckpointIO, TorchCheckpointIO
from fulmen.checkpoint.xla import XLACheckpointIO
from fulmen.plugins.hpu import HPUCheckpointIO

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "HPUCheckpointIO", "TorchCheckpointIO", "XLACheckpointIO"]
