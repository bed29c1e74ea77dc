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
    XLABf16Precision,
    XLAPrecision,
)

TPUPrecision = XLAPrecision
TPUBf16Precision = XLABf16Precision

__all__ = [
    "BitsandbytesPrecision",
    "DeepSpeedPrecision",
    "DoublePrecision",
    "FSDPPrecision",
    "Float8Precision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "TPUBf16Precision",
    "TPUPrecision",
    "TransformerEnginePrecision",
    "XLABf16Precision",
    "XLAPrecision",
]
