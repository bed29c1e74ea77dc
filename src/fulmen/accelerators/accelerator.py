"""The base of accelerators, under the name users import."""

from __future__ import annotations

from fulmen.fabric.accelerators import Accelerator

__all__ = ["Accelerator"]
