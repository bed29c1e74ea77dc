"""What every logger has, and what several of them need."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fulmen.extras import need
from fulmen.paths import is_url, join, local, names_in
from fulmen.ranks import rank_zero_only

if TYPE_CHECKING:
    from fulmen.callbacks import ModelCheckpoint

__all__ = ["DummyLogger", "FolderLogger", "Logger", "merge_dicts", "params_to_dict", "rank_zero_experiment"]

LOGGER_JOIN_CHAR = "-"


class Logger(ABC):
    """Base of all loggers. Only rank 0 may write: decorate what writes with `rank_zero_only`."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Version of the experiment."""

    @property
    def root_dir(self) -> str | None:
        """The folder of all versions of the experiment; None if nothing is kept locally."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The folder of this version; None if nothing is kept locally."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The folder of all experiments; None if nothing is kept locally."""
        return None

    @property
    def group_separator(self) -> str:
        """What separates the parts of a metric's name for this logger."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Records metrics.

        Args:
            metrics: Names to values.
            step: The step they belong to.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Records hyperparameters.

        Args:
            params: A dict or Namespace.
            *args: What the logger takes beyond that.
            **kwargs: What the logger takes beyond that.
        """

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:  # noqa: B027 - optional
        """Records the graph of a model.

        Args:
            model: The model.
            input_array: What to call it with.
        """

    def save(self) -> None:  # noqa: B027 - optional
        """Writes what was recorded so far."""

    def finalize(self, status: str) -> None:
        """Called at the end of a run; saves.

        Args:
            status: "success" or "failed".
        """
        self.save()

    def share_version(self, broadcast: Callable[[Any], Any]) -> None:  # noqa: B027 - optional
        """Called on all processes before a run: takes from rank 0 what it alone can find out.

        Args:
            broadcast: Gives back rank 0's argument.
        """

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:  # noqa: B027 - optional
        """Called after a checkpoint callback saved.

        Args:
            checkpoint_callback: The callback.
        """


class FolderLogger(Logger):
    """A logger that writes into `<save_dir>/<name>/version_<n>`.

    Args:
        save_dir: The folder of all experiments, or a URL.
        name: The folder of this experiment; None or "": there is no such level.
        version: A number, or a string that is the folder's name as it is; None: one more than the highest there is.
        prefix: Put in front of every metric's name, joined with "-".
    """

    LOGGER_JOIN_CHAR = LOGGER_JOIN_CHAR

    def __init__(self, save_dir: str | Path, name: str | None, version: int | str | None, prefix: str) -> None:
        super().__init__()
        self._save_dir = local(save_dir)
        if is_url(self._save_dir):
            need("fsspec")
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The name of the experiment; empty if there is none."""
        return self._name

    @property
    def version(self) -> int | str:
        """The version; found in the file system the first time it is asked for, if none was given."""
        if self._version is None:
            self._version = next_version(self._versions_dir)
        return self._version

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """The folder of all versions of the experiment."""
        return join(self._save_dir, self._name)

    @property
    def log_dir(self) -> str:
        """The folder of this version."""
        version = self.version
        return join(self._versions_dir, version if isinstance(version, str) else f"version_{version}")

    def share_version(self, broadcast: Callable[[Any], Any]) -> None:
        """Takes rank 0's version; another process that looks later would find its folder, and count on."""
        self._version = broadcast(self.version if rank_zero_only.rank == 0 else None)

    @property
    def _versions_dir(self) -> str:
        return self.root_dir

    def _prefixed(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._prefix:
            return metrics
        return {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{key}": value for key, value in metrics.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the experiment: open files do not go into another process, which opens its own."""
        return {**self.__dict__, "_experiment": None}


def next_version(root_dir: str) -> int:
    """One more than the highest `version_<n>` in `root_dir`; 0 if there is none."""
    names = names_in(os.path.expandvars(os.path.expanduser(root_dir)))
    numbers = (name.removeprefix("version_") for name in names if name.startswith("version_"))
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


# ---------------------------------------------------------------------------------------------- loggers that do nothing


class _DummyExperiment:
    """Takes everything that is done with an experiment and does nothing."""

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """What every attribute is."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # copying and pickling ask for methods that must not seem to exist
            raise AttributeError(name)
        return self._nothing

    def __getitem__(self, index: Any) -> _DummyExperiment:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing is kept."""


class DummyLogger(Logger):
    """A logger that takes everything and writes nothing, for instance in a run that only tries the code."""

    def __init__(self) -> None:
        super().__init__()
        self._experiment = _DummyExperiment()

    @property
    def experiment(self) -> _DummyExperiment:
        """An object whose every attribute is a function that does nothing."""
        return self._experiment

    @property
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def __getitem__(self, idx: int) -> DummyLogger:
        return self

    def __iter__(self) -> Any:
        return iter([self])

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):  # copying and pickling ask for methods that must not seem to exist
            raise AttributeError(name)
        return self._experiment._nothing


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes the property `experiment` of a logger an object that does nothing on all ranks but 0."""

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        real = fn(self) if rank_zero_only.rank == 0 else None
        return _DummyExperiment() if real is None else real

    return experiment


# ------------------------------------------------------------------------------------------------ helpers


def params_to_dict(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Hyperparameters as a dict, whatever they came as."""
    if params is None:
        return {}
    return dict(vars(params) if isinstance(params, Namespace) else params)


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Any] | None = None,
    default_func: Callable[[Sequence[float]], float] = mean,
) -> dict[str, Any]:
    """Merges dicts by aggregating the values of each key; nested dicts are merged the same way.

    Args:
        dicts: The dicts.
        agg_key_funcs: How to aggregate the values of a key; for a nested dict, a mapping of its keys.
        default_func: How to aggregate the values of all other keys.

    Returns:
        A dict with every key that any of them has.

    Example:
        >>> merge_dicts([{"a": 1.0, "b": {"c": 1}}, {"a": 3.0, "b": {"c": 5}}], agg_key_funcs={"b": {"c": max}})
        {'a': 2.0, 'b': {'c': 5}}
    """
    functions = agg_key_funcs or {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in dicts for key in each):
        values = [each[key] for each in dicts if key in each]
        if isinstance(values[0], Mapping):
            merged[key] = merge_dicts(values, functions.get(key), default_func)
        else:
            merged[key] = functions.get(key, default_func)(values)
    return merged
