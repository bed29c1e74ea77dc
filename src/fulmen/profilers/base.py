"""The profiler that does not profile."""

from __future__ import annotations

from fulmen.profilers.profiler import Profiler

__all__ = ["PassThroughProfiler"]


class PassThroughProfiler(Profiler):
    """Records nothing: what a Trainer has for want of another, so that `trainer.profiler.profile(...)` always works."""

    def start(self, action_name: str) -> None:
        """Nothing is recorded."""

    def stop(self, action_name: str) -> None:
        """Nothing is recorded."""
