"""The base of profilers: actions that start and stop, and a report at the end of a run."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.extras import need
from fulmen.ranks import rank_zero_info

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["Profiler"]

_NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


class Profiler(ABC):
    """Base class of profilers: override `start` and `stop`, and `summary` for a report.

    A Trainer tells its profiler of every part of a run, under these names: `[LightningModule]<Class>.<hook>`,
    `[LightningDataModule]<Class>.<hook>`, `[Callback]<state_key>.<hook>`, `[Strategy]<Class>.<hook>` (steps, backward,
    optimizer step), "run_training_epoch", "run_training_batch", "[_TrainingEpochLoop].train_dataloader_next",
    "[_EvaluationLoop].val_next", "save_checkpoint" and others.

    Args:
        dirpath: Folder of the report: a path or URL. Default: the `log_dir` of the Trainer.
        filename: Name of the report's file, without its ending. None writes the report to the log instead.

    Example::

        class Counter(Profiler):
            def __init__(self):
                super().__init__()
                self.counts = collections.Counter()

            def start(self, action_name):
                self.counts[action_name] += 1

            def stop(self, action_name):
                pass

        Trainer(profiler=Counter())
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._local_rank: int | None = None
        self._stage: str | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """An action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """An action has ended."""

    def summary(self) -> str:
        """The report; empty if there is nothing to tell."""
        return ""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Context of an action; use it for parts of your own.

        Example::

            with self.trainer.profiler.profile("augment"):
                batch = self.augment(batch)
        """
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    @property
    def local_rank(self) -> int:
        """Rank of the process on its machine."""
        return self._local_rank or 0

    def attach(self, trainer: Trainer) -> None:  # noqa: B027 - optional
        """A run of this Trainer begins; for profilers that want to know more of it than `setup` is told."""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: "fit", "validate", "test" or "predict".
            local_rank: Rank of the process on its machine; None if there is one process only.
            log_dir: Folder of the report if the profiler was given none.
        """
        self._stage = str(stage)
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir

    def describe(self) -> None:
        """The run has ended: write the report to its file, or to the log, then `teardown`."""
        text = self.summary()
        if text and self.filename and self.dirpath:
            self._write(text)
        elif text and self.local_rank == 0:
            rank_zero_info(text)
        self.teardown(stage=self._stage)

    def teardown(self, stage: str | None) -> None:  # noqa: B027 - optional
        """Give back what the profiler holds."""

    def _path(self, extension: str, action_name: str | None = None) -> str:
        """Where a file of this run goes: `<dirpath>/<stage>-<filename>-<action>-<rank>.<extension>`."""
        rank = None if self._local_rank is None else str(self._local_rank)
        parts = [part for part in (self._stage, self.filename, action_name, rank) if part]
        name = _NOT_IN_FILE_NAMES.sub("_", "-".join(parts)) + extension
        return f"{str(self.dirpath or '.').rstrip('/')}/{name}"

    def _write(self, text: str) -> None:
        path = self._path(".txt")
        if "://" in path:
            with need("fsspec").open(path, "a") as file:
                file.write(text + "\n")
            return
        with local(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def _title(self) -> str:
        return f"{self._stage.upper()} Profiler Report" if self._stage else "Profiler Report"

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process is told of its own run.
        return self.__dict__ | {"_stage": None, "_local_rank": None}


def local(path: str) -> Path:
    """A path on the local disk whose folder is there."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
