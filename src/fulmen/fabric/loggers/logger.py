"""The base of loggers, and what `root_dir` means to those of `Fabric`."""

from __future__ import annotations

from fulmen.loggers.logger import FolderLogger, Logger, rank_zero_experiment
from fulmen.paths import join

__all__ = ["InRootDir", "Logger", "rank_zero_experiment"]


class InRootDir(FolderLogger):
    """A logger that writes into `<root_dir>/<name>/version_<n>`.

    A Trainer's loggers call the first of these folders `save_dir`, and the first two together `root_dir`.
    """

    @property
    def root_dir(self) -> str:
        """The folder of all experiments."""
        return self.save_dir

    @property
    def _versions_dir(self) -> str:
        return join(self.root_dir, self.name)
