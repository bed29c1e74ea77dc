"""Files in any place that fsspec knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fulmen.extras import need

__all__ = ["get_filesystem"]


def get_filesystem(path: str | Path, **kwargs: Any) -> Any:
    """The fsspec filesystem of a path or URL.

    Args:
        path: For instance "s3://bucket/folder"; a plain path is one of the local disk.
        **kwargs: Passed on to the filesystem.

    Raises:
        ModuleNotFoundError: fsspec is not installed.
    """
    return need("fsspec.core").url_to_fs(str(path), **kwargs)[0]
