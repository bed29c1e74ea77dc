"""TensorBoardLogger for `Fabric`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fulmen.fabric.loggers.logger import InRootDir
from fulmen.loggers import tensorboard

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(InRootDir, tensorboard.TensorBoardLogger):
    """Writes event files for TensorBoard to `<root_dir>/<name>/version_<n>`.

    It is the logger of the Trainer, under the arguments that users of `Fabric` know; `log_graph` always writes the
    graph, as it is only called by you.

    Args:
        root_dir: The folder of all experiments.
        name: The folder of this experiment; None or "": there is no such level.
        version: A number, or a string that is the folder's name as it is; None: one more than the highest there is.
        default_hp_metric: Whether hyperparameters that are logged without a metric get the metric `hp_metric`, so that
            TensorBoard shows them.
        prefix: Put in front of every metric's name, joined with "-".
        sub_dir: A folder in that of the version, which the event files go to.
        **kwargs: Arguments of `SummaryWriter`, for instance `flush_secs` or `purge_step`.

    Raises:
        ModuleNotFoundError: Neither tensorboard nor tensorboardX is installed.
    """

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root_dir, name, version, True, default_hp_metric, prefix, sub_dir, **kwargs)
