"""TensorBoardLogger: metrics, hyperparameters and graphs as TensorBoard's event files."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fulmen import tree
from fulmen.extras import available, need
from fulmen.hparams import save_hparams_to_yaml
from fulmen.loggers.logger import FolderLogger, params_to_dict, rank_zero_experiment
from fulmen.paths import exists, is_url, join
from fulmen.ranks import rank_zero_only, rank_zero_warn

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(FolderLogger):
    """Writes event files and `hparams.yaml` to `<save_dir>/<name>/version_<n>/<sub_dir>`.

    Needs the package tensorboard, or tensorboardX. In paths, environment variables and `~` are expanded.

    Args:
        save_dir: The folder of all experiments, or a URL (with the package fsspec).
        name: The folder of this experiment; None: there is no such level.
        version: A number, or a string that is the folder's name as it is; None: one more than the highest there is.
        log_graph: Whether the graph of the model is written; it needs `example_input_array`.
        default_hp_metric: Whether hyperparameters without a metric get the metric `hp_metric` of -1, without which
            TensorBoard does not show them.
        prefix: Put in front of every metric's name, joined with "-".
        sub_dir: A folder in that of the version.
        **kwargs: Arguments of `SummaryWriter`, for instance `flush_secs` or `purge_step`.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if not (available("tensorboard") or available("tensorboardX")):
            need("tensorboard")
        super().__init__(save_dir, name, version, prefix)
        self.hparams: dict[str, Any] = {}
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._writer_arguments = kwargs
        self._hparams_written = False

    @property
    def sub_dir(self) -> str | None:
        """The folder in that of the version; None if there is none."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """The folder of this version, with environment variables and `~` expanded."""
        log_dir = join(super().log_dir, self._sub_dir or "").rstrip("/" if is_url(self._save_dir) else os.sep)
        return os.path.expandvars(os.path.expanduser(log_dir))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `SummaryWriter`; made, with the folder, when it is first needed."""
        if self._experiment is None:
            module = need("torch.utils.tensorboard" if available("tensorboard") else "tensorboardX")
            self._experiment = module.SummaryWriter(log_dir=self.log_dir, **self._writer_arguments)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Writes scalars; a value that is a dict becomes several lines in one diagram.

        Args:
            metrics: Names to numbers, tensors with one element, or dicts of them.
            step: The step they belong to.

        Raises:
            ValueError: A value is something else.
        """
        experiment = self._experiment or self.experiment
        for key, value in self._prefixed(metrics).items():
            if isinstance(value, dict):
                experiment.add_scalars(key, tree.to_scalars(value), step)
                continue
            try:
                experiment.add_scalar(key, value.item() if isinstance(value, Tensor) else value, step)
            except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, AssertionError) as error:
                raise ValueError(
                    f"The metric {key!r} is {value!r} of {type(value).__name__}, and TensorBoard takes a number, a "
                    f"tensor with one element, or a dict of them. Reduce it first, or use `logger.experiment`."
                ) from error

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Writes hyperparameters for TensorBoard's table of them.

        Args:
            params: A dict or Namespace. Nested ones are flattened, their keys joined with "/".
            metrics: The metrics by which the table compares them; a number is called `hp_metric`.
            step: The step the metrics belong to; None: 0.
        """
        params = params_to_dict(params)
        self.hparams.update(params)
        self._hparams_written = False
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if not metrics:
            return
        self.log_metrics(metrics, 0 if step is None else step)
        module = need("torch.utils.tensorboard.summary" if available("tensorboard") else "tensorboardX.summary")
        writer = self.experiment._get_file_writer()
        for summary in module.hparams(_flattened(params), tree.to_scalars(self._prefixed(metrics))):
            writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Writes the graph of the model, if `log_graph` is set.

        Args:
            model: The module; it is called with the input, moved to its device by its own hooks.
            input_array: The input; None: `model.example_input_array`.
        """
        if not self._log_graph:
            return
        example: Any = getattr(model, "example_input_array", None) if input_array is None else input_array
        if not isinstance(example, (Tensor, tuple)):
            found = "is not set" if example is None else f"is of {type(example).__name__}"
            rank_zero_warn(
                f"The graph is not written: `example_input_array` {found}, and a tensor, or a tuple of the arguments "
                f"of `forward`, is needed. Type `self.example_input_array = torch.zeros(1, ...)` in `__init__`."
            )
            return
        with warnings.catch_warnings():
            # the writer traces with a function that torch wants to retire; users cannot change that
            warnings.filterwarnings("ignore", message=".*torch.jit.trace", category=DeprecationWarning)
            self.experiment.add_graph(model, _on_device_of(model, example))

    @rank_zero_only
    def save(self) -> None:
        """Hands what was logged to the operating system, and writes `hparams.yaml` if it is not there."""
        if self._experiment is not None:
            self._experiment.flush()
        if not self._hparams_written:
            self._write_hparams()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flushes and closes the event file; later values open another one.

        Args:
            status: "success" or "failed".
        """
        if self._experiment is not None:
            self._experiment.flush()
            self._experiment.close()
        if status == "success" and not self._hparams_written:
            self._write_hparams()

    def _write_hparams(self) -> None:
        path = join(self.log_dir, self.NAME_HPARAMS_FILE)
        if exists(self.log_dir) and not exists(path):
            save_hparams_to_yaml(path, self.hparams)
            self._hparams_written = True


def _on_device_of(model: Any, example: Any) -> Any:
    """The example as a batch of the model would be."""
    if not hasattr(model, "transfer_batch_to_device"):
        return example
    example = model.on_before_batch_transfer(example, 0)
    example = model.transfer_batch_to_device(example, model.device, 0)
    return model.on_after_batch_transfer(example, 0)


def _flattened(params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested hyperparameters as one level, in types that TensorBoard takes."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, Mapping) and value:
            flat.update(_flattened(value, f"{path}{key}/"))
        else:
            flat[f"{path}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    """A scalar of numpy as Python's; what TensorBoard does not take as text."""
    if not isinstance(value, Tensor) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return value if isinstance(value, (bool, int, float, str, Tensor)) else str(value)
