"""Compiled modules, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.compiled import from_compiled, to_uncompiled

__all__ = ["from_compiled", "to_uncompiled"]
