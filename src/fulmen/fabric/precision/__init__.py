"""Precisions: in which floating point type a module computes, and what that asks of the loss and the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.fabric.precision.base import Precision
from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.fabric.precision.bitsandbytes import BitsandbytesPrecision
    from fulmen.fabric.precision.deepspeed import DeepSpeedPrecision
    from fulmen.fabric.precision.float8 import Float8Precision
    from fulmen.fabric.precision.fsdp import FSDPPrecision
    from fulmen.fabric.precision.mixed import MixedPrecision
    from fulmen.fabric.precision.transformer_engine import TransformerEnginePrecision
    from fulmen.fabric.precision.true import DoublePrecision, HalfPrecision
    from fulmen.fabric.precision.xla import XLABf16Precision, XLAPrecision

__all__ = [
    "BitsandbytesPrecision",
    "DeepSpeedPrecision",
    "DoublePrecision",
    "FSDPPrecision",
    "Float8Precision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "TransformerEnginePrecision",
    "XLABf16Precision",
    "XLAPrecision",
]

__getattr__ = importing(
    __name__,
    {
        "BitsandbytesPrecision": ".bitsandbytes",
        "DeepSpeedPrecision": ".deepspeed",
        "DoublePrecision": ".true",
        "FSDPPrecision": ".fsdp",
        "Float8Precision": ".float8",
        "HalfPrecision": ".true",
        "MixedPrecision": ".mixed",
        "TransformerEnginePrecision": ".transformer_engine",
        "XLABf16Precision": ".xla",
        "XLAPrecision": ".xla",
    },
)


def __dir__() -> list[str]:
    return __all__
