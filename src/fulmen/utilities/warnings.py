"""Warnings, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.errors import PossibleUserWarning

__all__ = ["PossibleUserWarning"]
