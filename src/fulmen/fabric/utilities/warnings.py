"""Warnings, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.errors import PossibleUserWarning
from fulmen.ranks import disable_possible_user_warnings

__all__ = ["PossibleUserWarning", "disable_possible_user_warnings"]
