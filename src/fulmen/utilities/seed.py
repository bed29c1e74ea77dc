"""Seeds, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.fabric.seed import isolate_rng

__all__ = ["isolate_rng"]
