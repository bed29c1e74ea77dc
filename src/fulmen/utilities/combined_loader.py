"""Several loaders as one, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.data.combined import CombinedLoader

__all__ = ["CombinedLoader"]
