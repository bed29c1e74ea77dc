"""Small helpers that need no Trainer. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.fabric.utilities.spike import SpikeDetection
    from fulmen.fabric.utilities.throughput import Throughput, ThroughputMonitor, get_available_flops, measure_flops

__all__ = ["SpikeDetection", "Throughput", "ThroughputMonitor", "get_available_flops", "measure_flops"]

_MODULE_OF = {
    "SpikeDetection": "fulmen.fabric.utilities.spike",
    "Throughput": "fulmen.fabric.utilities.throughput",
    "ThroughputMonitor": "fulmen.fabric.utilities.throughput",
    "get_available_flops": "fulmen.fabric.utilities.throughput",
    "measure_flops": "fulmen.fabric.utilities.throughput",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
