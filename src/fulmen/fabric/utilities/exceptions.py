"""Exceptions, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.errors import MisconfigurationException

__all__ = ["MisconfigurationException"]
