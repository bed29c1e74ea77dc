"""The loops: fit, evaluate, predict."""

from __future__ import annotations

from fulmen.states import RestartStage

__all__ = ["RestartStage"]
