"""The plugins, under the names users import."""

from __future__ import annotations

from fulmen.fabric.environments import (
    ClusterEnvironment,
    LightningEnvironment,
)
from fulmen.fabric.plugins.io import (
    CheckpointIO,
    TorchCheckpointIO,
    XLACheckpointIO,
)
from fulmen.fabric.plugins.precision import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    DoublePrecision,
    Float8Precision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TPUBf16Precision,
    TPUPrecision,
    TransformerEnginePrecision,
    XLABf16Precision,
    XLAPrecision,
)

__all__ = [
    "BitsandbytesPrecision",
    "CheckpointIO",
    "ClusterEnvironment",
    "DeepSpeedPrecision",
    "DoublePrecision",
    "FSDPPrecision",
    "Float8Precision",
    "HalfPrecision",
    "LightningEnvironment",
    "MixedPrecision",
    "Precision",
    "TPUBf16Precision",
    "TPUPrecision",
    "TorchCheckpointIO",
    "TransformerEnginePrecision",
    "XLABf16Precision",
    "XLACheckpointIO",
    "XLAPrecision",
]
