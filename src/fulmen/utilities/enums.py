"""Enumerations, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.fabric.utilities.enums import LightningEnum
from fulmen.types import GradClipAlgorithmType

__all__ = ["GradClipAlgorithmType", "LightningEnum"]
