"""The optimizer of a module, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.optim import LightningOptimizer, do_nothing_closure

__all__ = ["LightningOptimizer", "do_nothing_closure"]
