"""Profilers: what measures a run, part by part. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

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

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
