"""Profilers: what measures a run, part by part. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.profilers.advanced import AdvancedProfiler
    from fulmen.profilers.base import PassThroughProfiler
    from fulmen.profilers.profiler import Profiler
    from fulmen.profilers.pytorch import PyTorchProfiler
    from fulmen.profilers.simple import SimpleProfiler
    from fulmen.profilers.xla import XLAProfiler

_MODULE_OF = {
    "AdvancedProfiler": "fulmen.profilers.advanced",
    "PassThroughProfiler": "fulmen.profilers.base",
    "Profiler": "fulmen.profilers.profiler",
    "PyTorchProfiler": "fulmen.profilers.pytorch",
    "SimpleProfiler": "fulmen.profilers.simple",
    "XLAProfiler": "fulmen.profilers.xla",
}

__all__ = [
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "SimpleProfiler",
    "XLAProfiler",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
