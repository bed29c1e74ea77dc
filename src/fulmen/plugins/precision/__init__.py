"""The precisions, under the names users import."""

from __future__ import annotations

from fulmen.fabric.precision import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    DoublePrecision,
    Float8Precision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TransformerEnginePrecision,
    XLAPrecision,
)
from fulmen.plugins.hpu import HPUPrecisionPlugin
from fulmen.plugins.precision.former_names import (
    BitsandbytesPrecisionPlugin,
    DeepSpeedPrecisionPlugin,
    DoublePrecisionPlugin,
    FSDPMixedPrecisionPlugin,
    FSDPPrecisionPlugin,
    HalfPrecisionPlugin,
    MixedPrecisionPlugin,
    PrecisionPlugin,
    TPUBf16PrecisionPlugin,
    TPUPrecisionPlugin,
    TransformerEnginePrecisionPlugin,
    XLABf16PrecisionPlugin,
    XLAPrecisionPlugin,
)

__all__ = [
    "BitsandbytesPrecision",
    "BitsandbytesPrecisionPlugin",
    "DeepSpeedPrecision",
    "DeepSpeedPrecisionPlugin",
    "DoublePrecision",
    "DoublePrecisionPlugin",
    "FSDPMixedPrecisionPlugin",
    "FSDPPrecision",
    "FSDPPrecisionPlugin",
    "Float8Precision",
    "HPUPrecisionPlugin",
    "HalfPrecision",
    "HalfPrecisionPlugin",
    "MixedPrecision",
    "MixedPrecisionPlugin",
    "Precision",
    "PrecisionPlugin",
    "TPUBf16PrecisionPlugin",
    "TPUPrecisionPlugin",
    "TransformerEnginePrecision",
    "TransformerEnginePrecisionPlugin",
    "XLABf16PrecisionPlugin",
    "XLAPrecision",
    "XLAPrecisionPlugin",
]
