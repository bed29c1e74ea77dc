"""PyTorch anywhere: devices, precision, strategies and checkpoints, for a Trainer and for loops of the user's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
