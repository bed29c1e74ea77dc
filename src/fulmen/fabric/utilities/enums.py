"""Enumerations, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.types import CaselessEnum as LightningEnum

__all__ = ["LightningEnum"]
