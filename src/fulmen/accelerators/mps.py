"""The GPU of Apple silicon, under the names users import."""

from __future__ import annotations

from fulmen.fabric.accelerators.mps import MPSAccelerator, get_device_stats

__all__ = ["MPSAccelerator", "get_device_stats"]
