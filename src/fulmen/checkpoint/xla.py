"""Checkpoints of modules on TPUs and other devices of torch_xla."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fulmen.checkpoint.store import TorchCheckpointIO
from fulmen.extras import need
from fulmen.tree import map_tensors

__all__ = ["XLACheckpointIO"]


class XLACheckpointIO(TorchCheckpointIO):
    """Writes the same files as `TorchCheckpointIO`, with all tensors brought to the CPU first.

    Raises:
        ModuleNotFoundError: The package torch_xla is not installed.
    """

    def __init__(self) -> None:
        need("torch_xla")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; see `TorchCheckpointIO.save_checkpoint` for arguments and what is raised."""
        need("torch_xla.core.xla_model").mark_step()  # what is still only recorded gets computed, in one go
        super().save_checkpoint(map_tensors(Tensor.cpu, checkpoint), path, storage_options)
