"""Progress bars. Each is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.callbacks.progress.progress_bar import ProgressBar
    from fulmen.callbacks.progress.rich_progress import RichProgressBar
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar

_MODULE_OF = {
    "ProgressBar": "fulmen.callbacks.progress.progress_bar",
    "RichProgressBar": "fulmen.callbacks.progress.rich_progress",
    "TQDMProgressBar": "fulmen.callbacks.progress.tqdm_progress",
}

__all__ = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
