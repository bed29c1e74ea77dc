"""The loggers, with the arguments that users of `Fabric` know. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

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

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
