"""Tuner: finds a learning rate or a batch size for a run, without touching the trainer that will do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.callbacks.batch_size_finder import BatchSizeFinder
from fulmen.callbacks.lr_finder import LearningRateFinder
from fulmen.errors import MisconfigurationException
from fulmen.trainer import Trainer
from fulmen.tuner.batch_size_scaling import find_batch_size
from fulmen.tuner.lr_finder import _LRFinder, find_learning_rate
from fulmen.tuner.probe import Task

__all__ = ["Tuner"]

_METHODS = ("fit", "validate", "test", "predict")


class Tuner:
    """Tries out settings before a run.

    What it tries runs in a trainer of its own, made for the try with the settings of the given one. Afterwards
    trainer, module, optimizers, random states and files are as they were, also if a try fails; only the attribute
    that was looked for has its new value.

    Args:
        trainer: The trainer of the run to come.

    Example:
        >>> tuner = Tuner(trainer)
        >>> tuner.scale_batch_size(model, mode="binsearch")
        >>> tuner.lr_find(model).plot(suggest=True)
        >>> trainer.fit(model)
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def scale_batch_size(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Finds the largest batch size that fits into memory, and sets it.

        A size fits if ``steps_per_trial`` steps with it run through, in fit with the validation that follows. The size
        that is returned has been run. Sizes larger than the dataset are not tried once it is in one batch.

        Args:
            model: The module.
            train_dataloaders: A datamodule. Loaders cannot be used: their batch size is fixed.
            val_dataloaders: Cannot be used, likewise.
            dataloaders: For the other methods, like ``train_dataloaders``.
            datamodule: The source of the data, if it is not the module.
            method: "fit", "validate", "test" or "predict": what is to be run with the size.
            mode: "power" doubles the size until it no longer fits; "binsearch" then goes on by halving the interval.
            steps_per_trial: Steps that a size has to run: in fit of the optimizer, else batches.
            init_val: The first size.
            max_trials: So many sizes are doubled or halved at most, not counting those of the halved intervals.
            batch_arg_name: The attribute of the module or datamodule, or the hyperparameter, that is the batch size.
            margin: With "binsearch" the fraction by which the size is lowered in the end, so that memory is left.
            max_val: The largest size to try.

        Returns:
            The size; None in a fast_dev_run.

        Raises:
            ValueError: An unknown method or mode; several processes; a ``BatchSizeFinder`` among the callbacks.
            AssertionError: A margin outside of [0, 1).
            MisconfigurationException: The batch size cannot be changed, or none fits.
        """
        _check_method(method)
        self._refuse_callback(BatchSizeFinder)
        if self._trainer.world_size > 1:
            raise ValueError(
                f"`Tuner.scale_batch_size` works with one process; this trainer has {self._trainer.world_size}. Find"
                " the size with `Trainer(devices=1)`: it is the size on each device."
            )
        data = _data_of(method, train_dataloaders, val_dataloaders, dataloaders)
        task = Task.of_call(self._trainer, method, model, datamodule, **data)
        return find_batch_size(task, mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)

    def lr_find(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> _LRFinder | None:
        """Finds a learning rate: trains with a rate that grows from step to step, and looks at where the loss falls.

        All parameter groups get the same rate; schedulers are left out, and so is validation. The steps go over as
        many epochs as they take.

        Args:
            model: The module; it must have one optimizer.
            train_dataloaders: The training data: a loader, or several in a list or dict, or a datamodule.
            val_dataloaders: Taken as in ``fit``, and not read.
            dataloaders: Must be None.
            datamodule: The source of the data, instead of loaders.
            method: Must be "fit".
            min_lr: The first rate.
            max_lr: The last rate.
            num_training: Number of steps.
            mode: How the rate grows: "exponential" or "linear".
            early_stop_threshold: The test ends when the smoothed loss is so many times its least value; None: never.
            update_attr: Whether the suggested rate is set: in the module, the datamodule, the hyperparameters of both.
            attr_name: The attribute that is the learning rate; by default ``lr``, else ``learning_rate``.

        Returns:
            The rates and losses, with ``suggestion()`` and ``plot()``; None in a fast_dev_run.

        Raises:
            MisconfigurationException: Another method; not one optimizer; nothing to train on; processes that are
                spawned or forked.
            ValueError: An unknown mode; a ``LearningRateFinder`` among the callbacks.
            AttributeError: ``update_attr``, and there is no such attribute.
        """
        if method != "fit":
            raise MisconfigurationException(f"`Tuner.lr_find(method={method!r})`: a learning rate is of use in 'fit'.")
        self._refuse_callback(LearningRateFinder)
        data = _data_of(method, train_dataloaders, val_dataloaders, dataloaders)
        task = Task.of_call(self._trainer, method, model, datamodule, **data)
        search = (task, min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr, attr_name)
        found: _LRFinder | None = self._launch(find_learning_rate, *search)
        return found

    def _launch(self, search: Callable[..., Any], *args: Any) -> Any:
        """Runs a search on all processes of the trainer."""
        launcher = self._trainer.strategy.launcher
        if launcher is None:
            return search(*args)
        if not launcher.runs_here:
            raise MisconfigurationException(
                "`Tuner.lr_find` cannot be used where processes are spawned or forked: a Trainer does that once."
                " Add a `LearningRateFinder()` to the callbacks, or type: strategy='ddp'"
            )
        return launcher.launch(search, *args)

    def _refuse_callback(self, kind: type) -> None:
        if any(isinstance(callback, kind) for callback in self._trainer.callbacks):
            raise ValueError(
                f"The trainer has a `{kind.__name__}` among its callbacks, which does the same when the run starts. Use"
                " either it or the Tuner."
            )


def _check_method(method: str) -> None:
    if method not in _METHODS:
        raise ValueError(f"`method={method!r}` is not known. Type one of: {', '.join(map(repr, _METHODS))}")


def _data_of(method: str, train: Any, val: Any, other: Any) -> dict[str, Any]:
    """The loaders by stage; those that do not belong to the method are refused."""
    if method == "fit":
        if other is not None:
            raise MisconfigurationException(
                "The Tuner was given `dataloaders` for 'fit'. Pass them as `train_dataloaders` and `val_dataloaders`."
            )
        return {"train": train, "validate": val}
    if train is not None or val is not None:
        raise MisconfigurationException(
            f"The Tuner was given `train_dataloaders` or `val_dataloaders` for {method!r}. Pass `dataloaders`."
        )
    return {method: other}
