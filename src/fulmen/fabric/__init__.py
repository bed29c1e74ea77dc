"""PyTorch anywhere: devices, precision, strategies and checkpoints, for a Trainer and for loops of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric
    from fulmen.fabric.seed import seed_everything
    from fulmen.fabric.wrappers import is_wrapped

__all__ = ["Fabric", "is_wrapped", "seed_everything"]

_MODULE_OF = {
    "Fabric": "fulmen.fabric.fabric",
    "is_wrapped": "fulmen.fabric.wrappers",
    "seed_everything": "fulmen.fabric.seed",
}

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
