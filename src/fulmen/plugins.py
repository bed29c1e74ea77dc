"""The plugins, under the names users import."""

from __future__ import annotations

from fulmen.checkpoint.store import CheckpointIO, TorchCheckpointIO
from fulmen.fabric.environments import ClusterEnvironment, LightningEnvironment
from fulmen.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

__all__ = [
    "CheckpointIO",
    "ClusterEnvironment",
    "DoublePrecision",
    "HalfPrecision",
    "LightningEnvironment",
    "MixedPrecision",
    "Precision",
    "TorchCheckpointIO",
]
