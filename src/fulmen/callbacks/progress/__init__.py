"""Progress bars. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

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

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
