"""Callbacks: what listens to a run without being part of the model. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.callback import Callback
    from fulmen.callbacks.checkpoint import Checkpoint
    from fulmen.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
    from fulmen.callbacks.lr_monitor import LearningRateMonitor
    from fulmen.callbacks.model_checkpoint import ModelCheckpoint
    from fulmen.callbacks.model_summary import ModelSummary
    from fulmen.callbacks.progress_bar import ProgressBar
    from fulmen.callbacks.report import Report
    from fulmen.callbacks.rich_model_summary import RichModelSummary
    from fulmen.callbacks.rich_progress import RichProgressBar, RichProgressBarTheme
    from fulmen.callbacks.timer import Timer

_MODULE_OF = {
    "Callback": "fulmen.callback",
    "Checkpoint": "fulmen.callbacks.checkpoint",
    "EarlyStopping": "fulmen.callbacks.early_stopping",
    "EarlyStoppingReason": "fulmen.callbacks.early_stopping",
    "LearningRateMonitor": "fulmen.callbacks.lr_monitor",
    "ModelCheckpoint": "fulmen.callbacks.model_checkpoint",
    "ModelSummary": "fulmen.callbacks.model_summary",
    "ProgressBar": "fulmen.callbacks.progress_bar",
    "Report": "fulmen.callbacks.report",
    "RichModelSummary": "fulmen.callbacks.rich_model_summary",
    "RichProgressBar": "fulmen.callbacks.rich_progress",
    "RichProgressBarTheme": "fulmen.callbacks.rich_progress",
    "Timer": "fulmen.callbacks.timer",
}

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "EarlyStoppingReason",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "Report",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "Timer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
