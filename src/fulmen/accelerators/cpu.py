"""The processor, under the names users import."""

from __future__ import annotations

from fulmen.fabric.accelerators.cpu import CPUAccelerator, get_cpu_stats

__all__ = ["CPUAccelerator", "get_cpu_stats"]
