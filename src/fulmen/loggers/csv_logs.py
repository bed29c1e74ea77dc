"""CSVLogger: metrics as rows of one CSV file."""

from __future__ import annotations

import csv
import os
import secrets
import weakref
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from fulmen.hparams import save_hparams_to_yaml
from fulmen.loggers.logger import FolderLogger, params_to_dict, rank_zero_experiment
from fulmen.loggers.spool import Spool
from fulmen.paths import is_url, join, local, names_in, remove
from fulmen.ranks import rank_zero_only, rank_zero_warn

__all__ = ["CSVLogger", "ExperimentWriter"]


class CSVLogger(FolderLogger):
    """Writes metrics to `<save_dir>/<name>/version_<n>/metrics.csv`, and hyperparameters to `hparams.yaml` beside it.

    Numbers are written such that they read back exactly. Whatever was saved stays, also if the process is killed. To a
    URL the file is copied at most every ten seconds, and at the end of a run; if that fails it stays here.

    Args:
        save_dir: The folder of all experiments, or a URL (with the package fsspec).
        name: The folder of this experiment; None: there is no such level.
        version: A number, or a string that is the folder's name as it is; None: one more than the highest there is.
        prefix: Put in front of every metric's name, joined with "-".
        flush_logs_every_n_steps: Rows are written at the latest at the end of as many steps, without `save`.
        append: Whether earlier rows in the folder of a given `version` stay, for a run that is resumed. If not, they
            are removed, with a warning.
    """

    _experiment: ExperimentWriter | None

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        *,
        append: bool = False,
    ) -> None:
        super().__init__(os.path.expandvars(os.path.expanduser(save_dir)), name, version, prefix)
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        # The folder of a new version is this logger's alone: what is in it was written by it, or by a copy of it in
        # another process. The folder of a given version may hold another run.
        self._owns_folder = version is None or append

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the files; made, with the folder, when it is first needed."""
        if self._experiment is None:
            self._experiment = ExperimentWriter(self.log_dir, resume=self._owns_folder)
            self._owns_folder = True
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds a row.

        Args:
            metrics: Names to numbers, or to tensors with one element.
            step: The step they belong to; None: the number of rows that are not written yet.
        """
        writer = self._experiment or self.experiment
        writer.log_metrics(self._prefixed(metrics), step)
        if step is not None and (step + 1) % self._flush_logs_every_n_steps == 0:
            writer.save()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Writes hyperparameters to `hparams.yaml`, together with those of earlier calls.

        Args:
            params: A dict or Namespace.
        """
        self.experiment.log_hparams(params_to_dict(params))

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that are not written yet."""
        if self._experiment is not None:
            self._experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the rows that are not written yet, and closes the file; a later row opens it again."""
        if self._experiment is not None:
            self._experiment.save()
            self._experiment.close()


class ExperimentWriter:
    """Appends rows to a CSV file whose columns may grow.

    Args:
        log_dir: The folder, or a URL; made if it is not there.
        resume: Whether to append to the rows that are there. If not, they are removed, with a warning.
    """

    SECONDS_BETWEEN_COPIES = 10.0

    NAME_HPARAMS_FILE = "hparams.yaml"
    NAME_METRICS_FILE = "metrics.csv"

    def __init__(self, log_dir: str | Path, resume: bool = False) -> None:
        self.log_dir = local(log_dir)
        self.hparams: dict[str, Any] = {}
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        self.metrics_file_path = join(self.log_dir, self.NAME_METRICS_FILE)
        is_remote = is_url(self.log_dir)
        self._spool = Spool(self.metrics_file_path, self.SECONDS_BETWEEN_COPIES) if is_remote else None
        self._path = self.metrics_file_path if self._spool is None else self._spool.path
        self._columns: set[str] = set()
        self._file: TextIO | None = None
        self._rows: Any = None
        if resume:
            self._read_columns()
        elif names_in(self.log_dir):
            rank_zero_warn(
                f"The folder {self.log_dir!r} of the experiment exists and is not empty. An earlier "
                f"{self.NAME_METRICS_FILE} in it is replaced."
            )
            remove(self.metrics_file_path)
        if not is_remote:
            os.makedirs(self.log_dir, exist_ok=True)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Writes hyperparameters, together with those of earlier calls."""
        self.hparams.update(params)
        save_hparams_to_yaml(join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Keeps a row for the next `save`."""
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics_dict.items()}
        row["step"] = len(self.metrics) if step is None else step
        self.metrics.append(row)

    def save(self) -> None:
        """Hands the rows kept so far to the operating system."""
        if not self.metrics:
            return
        for row in self.metrics:
            if not self._columns.issuperset(row):
                self._add_columns()
                break
        if self._file is None:
            self._open()
        columns = self.metrics_keys
        self._rows.writerows([[row.get(key, "") for key in columns] for row in self.metrics])
        self._file.flush()  # type: ignore[union-attr]
        self.metrics = []
        if self._spool is not None:
            self._spool.changed()

    def close(self) -> None:
        """Closes the file; the next `save` opens it again."""
        self._close_file()
        if self._spool is not None:
            self._spool.copy()

    def _close_file(self) -> None:
        if self._file is not None:
            self._close()
            self._file = self._rows = None

    def _read_columns(self) -> None:
        if self._spool is not None:
            self._spool.fetch()
        if os.path.isfile(self._path):
            with open(self._path, newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])
            self._columns = set(self.metrics_keys)

    def _open(self) -> None:
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - kept open
        self._rows = csv.writer(self._file)
        self._close = weakref.finalize(self, self._file.close)  # a logger may be dropped without `finalize`

    def _add_columns(self) -> None:
        """Gives the file a header with all columns; what was written before keeps its text."""
        self._close_file()
        self._columns.update(*self.metrics)
        self.metrics_keys = sorted(self._columns)
        replacement = f"{self._path}.{secrets.token_hex(4)}.partial"
        try:
            with open(replacement, "x", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.metrics_keys, restval="")
                writer.writeheader()
                if os.path.isfile(self._path):
                    with open(self._path, newline="", encoding="utf-8") as written:
                        writer.writerows(csv.DictReader(written))
            os.replace(replacement, self._path)
        finally:
            if os.path.exists(replacement):
                os.remove(replacement)
