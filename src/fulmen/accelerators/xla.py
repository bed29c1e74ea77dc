"""TPUs, under the names users import."""

from __future__ import annotations

from fulmen.fabric.accelerators.xla import XLAAccelerator

__all__ = ["XLAAccelerator"]
