"""Layers that share their statistics between processes, under the names users import."""

from __future__ import annotations

from fulmen.fabric.layer_sync import LayerSync, TorchSyncBatchNorm

__all__ = ["LayerSync", "TorchSyncBatchNorm"]
