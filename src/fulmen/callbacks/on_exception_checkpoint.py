"""OnExceptionCheckpoint: keep what was trained when an exception ends training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from fulmen.callbacks.checkpoint import Checkpoint

__all__ = ["OnExceptionCheckpoint"]


class OnExceptionCheckpoint(Checkpoint):
    """Saves a checkpoint when an exception (also Ctrl-C) ends training, and removes it when training ends well.

    With this callback ``trainer.fit(model)`` goes on from that checkpoint if there is one, as with
    ``ckpt_path="last"``.

    Nothing is saved before the first training step is due: a run that fails while it is being prepared leaves the
    checkpoint of the run before alone. So do runs with ``fast_dev_run``.

    Args:
        dirpath: The directory of the checkpoint, or a URL.
        filename: Its name without extension.

    Raises:
        ValueError: ``filename`` is empty.
    """

    FILE_EXTENSION: ClassVar[str] = ".ckpt"

    def __init__(self, dirpath: str | Path, filename: str = "on_exception") -> None:
        super().__init__()
        if not filename:
            raise ValueError(
                f"`OnExceptionCheckpoint(filename={filename!r})`: expected a name without extension, for instance"
                " 'on_exception'."
            )
        self.dirpath = dirpath
        self.filename = filename
        self._is_training = False

    @property
    def ckpt_path(self) -> str:
        """The file."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A new run begins."""
        self._is_training = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on there is something to save: everything is restored."""
        self._is_training = not trainer.fast_dev_run

    def on_exception(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Saves the state in which training was interrupted."""
        if self._is_training:
            trainer.save_checkpoint(self.ckpt_path)

    def teardown(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Training has ended well: the checkpoint is not needed any more."""
        if self._is_training:
            trainer.strategy.remove_checkpoint(self.ckpt_path)
            self._is_training = False
