"""No hangs: processes that train together learn at once when one of them fails, dies, leaves or waits for nobody."""

from __future__ import annotations

from fulmen.fabric.watch.client import RankFailedError, Watch, comes_from_another
from fulmen.fabric.watch.stand import Stand, stand_of

__all__ = ["RankFailedError", "Stand", "Watch", "comes_from_another", "stand_of"]
