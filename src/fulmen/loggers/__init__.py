"""Loggers: where metrics and hyperparameters are written to. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.loggers.csv_logs import CSVLogger
    from fulmen.loggers.logger import Logger
    from fulmen.loggers.tensorboard import TensorBoardLogger

_MODULE_OF = {
    "CSVLogger": "fulmen.loggers.csv_logs",
    "Logger": "fulmen.loggers.logger",
    "TensorBoardLogger": "fulmen.loggers.tensorboard",
}

__all__ = ["CSVLogger", "Logger", "TensorBoardLogger"]

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
