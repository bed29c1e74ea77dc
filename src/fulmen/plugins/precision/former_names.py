"""The names that precisions had in earlier versions of the public interface."""

from __future__ import annotations

from torch.amp import GradScaler

from fulmen.fabric.precision import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    DoublePrecision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TransformerEnginePrecision,
    XLABf16Precision,
    XLAPrecision,
)

__all__ = [
    "BitsandbytesPrecisionPlugin",
    "DeepSpeedPrecisionPlugin",
    "DoublePrecisionPlugin",
    "FSDPMixedPrecisionPlugin",
    "FSDPPrecisionPlugin",
    "HalfPrecisionPlugin",
    "MixedPrecisionPlugin",
    "PrecisionPlugin",
    "TPUBf16PrecisionPlugin",
    "TPUPrecisionPlugin",
    "TransformerEnginePrecisionPlugin",
    "XLABf16PrecisionPlugin",
    "XLAPrecisionPlugin",
]

BitsandbytesPrecisionPlugin = BitsandbytesPrecision
DeepSpeedPrecisionPlugin = DeepSpeedPrecision
DoublePrecisionPlugin = DoublePrecision
FSDPPrecisionPlugin = FSDPPrecision
HalfPrecisionPlugin = HalfPrecision
MixedPrecisionPlugin = MixedPrecision
PrecisionPlugin = Precision
TPUPrecisionPlugin = XLAPrecision
TPUBf16PrecisionPlugin = XLABf16Precision
TransformerEnginePrecisionPlugin = TransformerEnginePrecision
XLAPrecisionPlugin = XLAPrecision
XLABf16PrecisionPlugin = XLABf16Precision


class FSDPMixedPrecisionPlugin(FSDPPrecision):
    """`FSDPPrecision`, with a device that nothing depends on.

    Args:
        precision: "16-mixed" or "bf16-mixed".
        device: Type of the device.
        scaler: Scales the loss of "16-mixed"; None for `torch.amp.GradScaler` with its defaults.
    """

    def __init__(self, precision: str, device: str, scaler: GradScaler | None = None) -> None:
        super().__init__(precision, scaler)
