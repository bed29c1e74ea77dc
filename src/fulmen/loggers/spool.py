"""Spool: a local file that is brought to a URL now and then."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref

from fulmen.checkpoint.store import writer
from fulmen.paths import exists, filesystem
from fulmen.ranks import WarningCache

__all__ = ["Spool"]


class Spool:
    """A local file and its copy at a URL, where nothing can be appended.

    A copy that fails is no reason to end a training: it is a warning, the next one is tried as if nothing had happened,
    and the local file is not removed.

    Args:
        url: Where the copy is.
        seconds: How long after a copy the next one is made at the earliest.

    Attributes:
        path: The local file.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.seconds = seconds
        folder = tempfile.mkdtemp(prefix="fulmen-")
        self.path = os.path.join(folder, os.path.basename(url))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._copied_at = -float("inf")
        self._is_behind = False
        self._warnings = WarningCache()

    def fetch(self) -> None:
        """Begins with what is at the URL, if there is something."""
        if exists(self.url):
            remote, location = filesystem(self.url)
            remote.get_file(location, self.path)

    def changed(self) -> None:
        """Copies the file, unless that was done a moment ago."""
        self._is_behind = True
        if time.monotonic() - self._copied_at >= self.seconds:
            self.copy()

    def copy(self) -> None:
        """Copies the file, if it has changed since."""
        if not self._is_behind:
            return
        self._copied_at = time.monotonic()
        try:
            with open(self.path, "rb") as source, writer(self.url) as target:
                shutil.copyfileobj(source, target)
        except Exception as error:  # whatever the filesystem raises
            self._remove_folder.detach()
            self._warnings.warn(
                f"{self.url!r} could not be written: {type(error).__name__}: {error}. Nothing is lost: everything is in"
                f" {self.path!r}, and as long as the run goes on, the copy is tried again."
            )
        else:
            self._is_behind = False
