"""`Collective`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.collectives.collective import Collective

__all__ = ["Collective"]
