"""The loggers, with the arguments that users of `Fabric` know. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.fabric.loggers.csv_logs import CSVLogger
    from fulmen.fabric.loggers.tensorboard import TensorBoardLogger
    from fulmen.loggers.logger import Logger

_MODULE_OF = {
    "CSVLogger": "fulmen.fabric.loggers.csv_logs",
    "Logger": "fulmen.loggers.logger",
    "TensorBoardLogger": "fulmen.fabric.loggers.tensorboard",
}

__all__ = ["CSVLogger", "Logger", "TensorBoardLogger"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
