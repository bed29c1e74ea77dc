"""CSVLogger for `Fabric`: metrics as rows of one CSV file."""

from __future__ import annotations

from pathlib import Path

from fulmen.fabric.loggers.logger import InRootDir
from fulmen.loggers import csv_logs

__all__ = ["CSVLogger"]


class CSVLogger(InRootDir, csv_logs.CSVLogger):
    """Writes metrics to `<root_dir>/<name>/version_<n>/metrics.csv`, and hyperparameters to `hparams.yaml` beside it.

    It is the logger of the Trainer, under the arguments that users of `Fabric` know.

    Args:
        root_dir: The folder of all experiments.
        name: The folder of this experiment; None or "": there is no such level.
        version: A number, or a string that is the folder's name as it is; None: one more than the highest there is.
        prefix: Put in front of every metric's name, joined with "-".
        flush_logs_every_n_steps: Rows are written at the latest at the end of as many steps, without `save`.

    Example::

        fabric = Fabric(loggers=CSVLogger("logs"))
        fabric.log("loss", loss, step=step)
    """

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(root_dir, name, version, prefix, flush_logs_every_n_steps)
