"""ModelCheckpoint: write checkpoints in the course of training, and keep the best of them."""

from __future__ import annotations

import os
import shutil
import weakref
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.callbacks.monitor import is_logged, missing_metric, validates_once_an_epoch
from fulmen.callbacks.ranking import (
    admits,
    best_of,
    displaced_by_next,
    fill_in,
    finite_rank,
    insert,
    worst_of,
    worst_value,
)
from fulmen.errors import MisconfigurationException
from fulmen.extras import need
from fulmen.paths import absolute, exists, is_url, join, names_in, write_problem
from fulmen.ranks import WarningCache, rank_zero_info, rank_zero_warn
from fulmen.reach import never_due, no_validation, reach_of, warn
from fulmen.states import TrainerFn
from fulmen.trigger import Every

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ModelCheckpoint"]

_STATE = (
    "monitor",
    "best_model_score",
    "best_model_path",
    "current_score",
    "dirpath",
    "best_k_models",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)


class ModelCheckpoint(Checkpoint):
    """Writes checkpoints every so many epochs, steps, or minutes, and keeps the newest, the best ``k``, or all.

    A checkpoint that is due at a step after which a validation runs is taken after it and sees its metrics. An older
    checkpoint is removed only after the new one is completely written; the attributes name a file only from then on.

    Args:
        dirpath: The directory. None: ``<save_dir>/<name>/version_<n>/checkpoints`` of the first logger, or
            ``<default_root_dir>/checkpoints`` without one.
        filename: The file name without extension, with fields ``{key}`` or ``{key:format}`` for "epoch", "step" and
            all logged metrics; default ``{epoch}-{step}``.
        monitor: The metric that says which checkpoint is better. None: the newest is the best.
        verbose: Whether to report what is saved, and what is not.
        save_last: True also writes ``last.ckpt`` after each save; "link" makes it a symbolic link to the file saved.
        save_top_k: How many of the best to keep; -1 all, 0 none. Without ``monitor`` only -1, 0, 1.
        save_on_exception: Whether to save when an exception ends training.
        save_weights_only: Whether to leave out optimizers, schedulers and callbacks.
        mode: "min" if the monitored metric is to fall, "max" if it is to rise.
        auto_insert_metric_name: Whether a field of ``filename`` becomes ``key=value`` instead of ``value``.
        every_n_train_steps: Save when the number of optimizer steps is a multiple of this; 0 is off.
        train_time_interval: Save after this time, at the end of a batch.
        every_n_epochs: Save every so many epochs; 0 is off. Without any of these three: 1.
        save_on_train_epoch_end: Whether epochs are saved at their end instead of after each validation. None: at their
            end if there is one validation in each, or none at all.
        enable_version_counter: Whether to append ``-v1``, ``-v2``, ... instead of overwriting a file.
        every: One of the three triggers in any unit: "500 steps", "2 h", "10_000 samples", or an ``Every``.

    Attributes:
        best_model_path: The best checkpoint, "" before the first.
        best_model_score: Its score, a scalar tensor; None without ``monitor``.
        best_k_models: Score by path of all checkpoints that are kept for their score.
        kth_best_model_path: The worst of these once there are ``save_top_k``, else "".
        kth_value: Its score.
        current_score: The score of the checkpoint saved last for its score.
        last_model_path: The file of ``save_last``.

    Raises:
        MisconfigurationException: Arguments that contradict each other, a directory that cannot be written to, or a
            ``monitor`` that is not logged.
    """

    CHECKPOINT_JOIN_CHAR: ClassVar[str] = "-"
    CHECKPOINT_EQUALS_CHAR: ClassVar[str] = "="
    CHECKPOINT_NAME_LAST: ClassVar[str] = "last"
    FILE_EXTENSION: ClassVar[str] = ".ckpt"
    STARTING_VERSION: ClassVar[int] = 1

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        every: Every | str | None = None,
    ) -> None:
        super().__init__()
        self.dirpath = absolute(dirpath) if dirpath else None
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        self._every = None if every is None else Every.parse(every)
        if self._every is not None:
            given = (every_n_train_steps, train_time_interval, every_n_epochs)
            every_n_train_steps, train_time_interval, every_n_epochs = _in_known_units(self._every, *given)
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        nothing_given = every_n_train_steps is None and train_time_interval is None and every_n_epochs is None
        self._every_n_epochs = 1 if nothing_given else every_n_epochs or 0
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        self._check_arguments()

        self.best_model_path = ""
        self.best_model_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(worst_value(mode))
        self.current_score: Tensor | None = None
        self.last_model_path = ""

        self._upcoming: dict[str, Any] = {}  # attributes as they will be when the file being written is complete
        self._saved_step = 0
        self._due_step = 0
        self._put_off = False
        self._has_validated = False
        self._checked_time = 0.0
        self._warnings = WarningCache()

    def _check_arguments(self) -> None:
        if self.save_top_k < -1:
            raise self._wrong("save_top_k", self.save_top_k, "a number of checkpoints, 0 for none, or -1 for all")
        for name, value in (
            ("every_n_train_steps", self._every_n_train_steps),
            ("every_n_epochs", self._every_n_epochs),
        ):
            if value < 0:
                raise self._wrong(name, value, "a positive number, or 0 for never")
        if self.mode not in ("min", "max"):
            raise self._wrong("mode", self.mode, "'min' (the metric is to fall) or 'max' (it is to rise)")
        if self.save_last not in (None, True, False, "link"):
            raise self._wrong("save_last", self.save_last, "True, False, or 'link'")
        triggers = {
            "every_n_train_steps": self._every_n_train_steps,
            "every_n_epochs": self._every_n_epochs,
            "train_time_interval": self._train_time_interval,
        }
        given = [f"{name}={value!r}" for name, value in triggers.items() if value]
        if len(given) > 1:
            raise MisconfigurationException(
                f"`ModelCheckpoint({', '.join(given)})`: only one of them can say when to save."
                " Give the trainer one ModelCheckpoint for each.",
                subject=self,
            )
        if self.monitor is None and self.save_top_k not in (-1, 0, 1):
            raise MisconfigurationException(
                f"`ModelCheckpoint(save_top_k={self.save_top_k})` needs to know which checkpoints are the best."
                " Add for instance `monitor='val_loss'`, or use save_top_k=1 (keep the newest) or -1 (keep all).",
                subject=self,
            )

    def _wrong(self, name: str, value: object, expected: str) -> MisconfigurationException:
        return MisconfigurationException(f"`ModelCheckpoint({name}={value!r})`: expected {expected}.", subject=value)

    # ------------------------------------------------------------------------------------------------ state

    @property
    def every_n_epochs(self) -> int | None:
        """Every how many epochs a checkpoint is written; 0 is never."""
        return self._every_n_epochs

    @property
    def state_key(self) -> str:
        """Tells instances apart by what they monitor and when they save."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    def state_dict(self) -> dict[str, Any]:
        """Paths and scores; inside a checkpoint that is being written they count it already."""
        return {name: self._upcoming.get(name, getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; with another ``dirpath`` only the best path."""
        before = state_dict.get("dirpath", self.dirpath)
        if before == self.dirpath:
            for name in _STATE:
                if name not in ("monitor", "dirpath"):
                    setattr(self, name, state_dict.get(name, getattr(self, name)))
        else:
            rank_zero_warn(
                f"The checkpoint was written by a `ModelCheckpoint` with dirpath {before!r}, this one has"
                f" {self.dirpath!r}: only `best_model_path` is taken over; scores and the other paths start anew."
            )
        self.best_model_path = state_dict.get("best_model_path", self.best_model_path)

    # ------------------------------------------------------------------------------------------------ hooks

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Batches are of no interest when neither steps nor time trigger a save."""
        if hook == "on_train_batch_end":
            return self._counts_in_loop or self._every_n_train_steps > 0 or self._train_time_interval is not None
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settles the directory; for fit also makes sure that it can be written to."""
        self.dirpath = trainer.strategy.broadcast(self.dirpath or default_dirpath(trainer))
        if stage != TrainerFn.FITTING or trainer.fast_dev_run:
            return
        if self.save_last == "link" and is_url(self.dirpath):
            raise ValueError(
                f"`ModelCheckpoint(save_last='link', dirpath={self.dirpath!r})`: there are no links but in a local"
                " directory. Use `save_last=True`, which writes a file."
            )
        problem = trainer.strategy.broadcast(write_problem(self.dirpath) if trainer.is_global_zero else None)
        if problem is not None:
            raise MisconfigurationException(
                f"`ModelCheckpoint` cannot write to {self.dirpath!r}: {problem}."
                " Choose another place: `ModelCheckpoint(dirpath=...)` or `Trainer(default_root_dir=...)`.",
                subject=self.dirpath,
            )
        starts_anew = self._saved_step == 0 and trainer.ckpt_path is None
        if self.save_top_k != 0 and starts_anew and trainer.is_global_zero and names_in(self.dirpath):
            rank_zero_warn(f"Checkpoint directory {self.dirpath} exists and is not empty.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting."""
        self._saved_step = 0
        self._due_step = trainer.global_step
        self._put_off = self._has_validated = False
        if self._train_time_interval is not None:
            self._checked_time = trainer.clock.now(fresh=True)
        if self._counts_in_loop:
            assert self._every is not None
            trainer.fit_loop.watch(self._every)
        if self.save_top_k != 0 and not self.save_on_exception and not trainer.fast_dev_run:
            warn(_never_due(self, trainer))

    @property
    def _counts_in_loop(self) -> bool:
        return self._every is not None and self._every.unit in ("batches", "samples")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves by steps or time; leaves it to ``on_validation_end`` if a validation comes first."""
        if self._is_off(trainer) or not self._is_batch_due(trainer):
            return
        if not self._is_monitored(trainer) or trainer.fit_loop.validation_follows(batch_idx):
            self._put_off = True
        else:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what is due after a validation, or was put off until now."""
        if self._is_off(trainer):
            return
        self._has_validated = True
        if self._put_off:
            # A monitor that is still missing may be logged at the end of the training epoch.
            if self._is_monitored(trainer):
                self._save(trainer)
        elif self._is_epoch_due(trainer) and not self._saves_at_epoch_end(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what is due at the end of an epoch, or was put off until now."""
        if self._is_off(trainer):
            return
        if self._put_off or (self._is_epoch_due(trainer) and self._saves_at_epoch_end(trainer)):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last checkpoint if there was no other."""
        if self.save_last and self._saved_step == 0 and not self._is_off(trainer):
            self._save_last(trainer, self._metrics(trainer), linked_to=None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the state in which training was interrupted."""
        if not self.save_on_exception or self._is_off(trainer) or self._saved_step == trainer.global_step:
            return
        metrics = self._metrics(trainer)
        path = self._free_path(trainer, metrics)
        self._write(trainer, path, {})
        if self.save_last:
            self._save_last(trainer, metrics, linked_to=path)

    # ------------------------------------------------------------------------------------------------ when

    def _is_off(self, trainer: Trainer) -> bool:
        return bool(trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run or trainer.sanity_checking)

    def _is_batch_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step == self._due_step:  # a batch that only accumulated
            return False
        if self._train_time_interval is not None:
            now = trainer.clock.now()
            if now - self._checked_time < self._train_time_interval.total_seconds():
                return False
            self._checked_time = now
        elif self._counts_in_loop:
            assert self._every is not None
            if not trainer.fit_loop.passed(self._every):
                return False
        elif not self._every_n_train_steps or step % self._every_n_train_steps != 0:
            return False
        self._due_step = step
        return True

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _saves_at_epoch_end(self, trainer: Trainer) -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        if not trainer.enable_validation or validates_once_an_epoch(trainer):
            return True
        return trainer.check_val_every_n_epoch == 1 and not any(trainer.num_val_batches)

    # ------------------------------------------------------------------------------------------------ what

    def _metrics(self, trainer: Trainer) -> dict[str, Tensor]:
        """All that may be monitored or stand in a file name."""
        metrics: dict[str, Tensor] = dict(trainer.callback_metrics)
        for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
            metrics[name] = metrics[name].int() if name in metrics else torch.tensor(count)
        return metrics

    def _is_monitored(self, trainer: Trainer) -> bool:
        """Whether there is a score, if one is wanted."""
        return self.monitor is None or is_logged(type(self).__name__, self.monitor, self._metrics(trainer), trainer)

    def _save(self, trainer: Trainer) -> None:
        """Saves if the state of the model is worth it: the newest, or one of the best."""
        self._put_off = False
        if self.save_top_k == 0 or self._saved_step == trainer.global_step:
            return
        metrics = self._metrics(trainer)
        saved = self._save_newest(trainer, metrics) if self.monitor is None else self._save_best(trainer, metrics)
        if saved is None:
            return
        path, displaced = saved
        if self.save_last == "link":  # before the file that the link leads to now is removed
            self._save_last(trainer, metrics, linked_to=path)
        if displaced and displaced != path:
            self._remove(trainer, displaced)
        if self.save_last and self.save_last != "link":
            self._save_last(trainer, metrics, linked_to=None)

    def _save_newest(self, trainer: Trainer, metrics: dict[str, Tensor]) -> tuple[str, str]:
        """Saves whatever there is; returns its path, and the one to be removed, "" for none."""
        displaced = self.best_model_path if self.save_top_k == 1 else ""
        path = self._free_path(trainer, metrics, displaced)
        self._write(trainer, path, {"best_model_path": path})
        return path, displaced

    def _save_best(self, trainer: Trainer, metrics: dict[str, Tensor]) -> tuple[str, str] | None:
        """Saves if the monitored score is among the best; returns as ``_save_newest``, None if it is not."""
        assert self.monitor is not None
        if not self._is_monitored(trainer):
            self._report_missing(metrics)
            return None
        where = f"Epoch {trainer.current_epoch}, global step {trainer.global_step}"
        score = finite_rank(metrics[self.monitor], self.mode)
        if not self.check_monitor_top_k(trainer, score):
            if self.verbose:
                rank_zero_info(f"{where}: {self.monitor!r} was not in top {self.save_top_k}")
            return None
        score = trainer.strategy.broadcast(score)  # scores and paths are rank 0's, whose checkpoint holds them
        displaced = displaced_by_next(self.best_k_models, self.save_top_k, self.mode)
        path = self._free_path(trainer, metrics, displaced)
        changes = self._ranked(path, score)
        if self.verbose:
            rank_zero_info(
                f"{where}: {self.monitor!r} reached {score:0.5f} (best {changes['best_model_score']:0.5f}),"
                f" saving model to {path!r} as top {len(changes['best_k_models'])}"
            )
        self._write(trainer, path, changes)
        return path, displaced

    def _ranked(self, path: str, score: Tensor) -> dict[str, Any]:
        """The attributes once ``path`` is one of the best."""
        models = insert(self.best_k_models, self.save_top_k, self.mode, path, score)
        best = best_of(models, self.mode)
        is_full = self.save_top_k == -1 or len(models) == self.save_top_k
        worst = worst_of(models, self.mode)
        return {
            "current_score": score,
            "best_k_models": models,
            "best_model_path": best,
            "best_model_score": models[best],
            "kth_best_model_path": worst if is_full else "",
            "kth_value": models[worst] if is_full else torch.tensor(worst_value(self.mode)),
        }

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a checkpoint with the score ``current`` would be among the best; all ranks must agree."""
        if current is None:
            return False
        is_among = admits(self.best_k_models, self.save_top_k, self.mode, float(current))
        return bool(trainer.strategy.reduce_boolean_decision(is_among))

    def _report_missing(self, metrics: dict[str, Tensor]) -> None:
        message = missing_metric(type(self).__name__, str(self.monitor), metrics)
        if self._has_validated:
            raise MisconfigurationException(message, subject=self.monitor)
        self._warnings.warn(f"{message} No checkpoint is saved without it.")

    # ------------------------------------------------------------------------------------------------ files

    def _write(self, trainer: Trainer, path: str, changes: dict[str, Any]) -> None:
        """Writes a checkpoint. It holds ``changes`` already; the attributes take them when it is complete."""
        self._upcoming = changes
        try:
            trainer.save_checkpoint(path, self.save_weights_only)
        finally:
            self._upcoming = {}
        for name, value in changes.items():
            setattr(self, name, value)
        self._saved_step = trainer.global_step
        self._tell_loggers(trainer)

    def _tell_loggers(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(weakref.proxy(self))

    def _save_last(self, trainer: Trainer, metrics: dict[str, Tensor], linked_to: str | None) -> None:
        """Writes the last checkpoint, or links it to the one just written; removes the one before."""
        path = self.format_checkpoint_name(metrics, self.CHECKPOINT_NAME_LAST)
        before = self.last_model_path
        path = self._free_version(trainer, path, metrics, self.CHECKPOINT_NAME_LAST, before)
        if self.save_last == "link" and linked_to is not None:
            if trainer.is_global_zero:
                _link(path, linked_to)
            trainer.strategy.barrier()
            self.last_model_path = path
        else:
            self._write(trainer, path, {"last_model_path": path})
        if before and before != path:
            self._remove(trainer, before)

    def _free_path(self, trainer: Trainer, metrics: dict[str, Tensor], displaced: str = "") -> str:
        """A path that nothing else is at, except what is displaced anyway."""
        path = self.format_checkpoint_name(metrics)
        return self._free_version(trainer, path, metrics, None, displaced)

    def _free_version(
        self, trainer: Trainer, path: str, metrics: dict[str, Tensor], filename: str | None, displaced: str
    ) -> str:
        version = self.STARTING_VERSION
        counts = self._enable_version_counter and trainer.is_global_zero
        while counts and path != displaced and exists(path):
            path = self.format_checkpoint_name(metrics, filename, ver=version)
            version += 1
        decided: str = trainer.strategy.broadcast(path)
        return decided

    def _remove(self, trainer: Trainer, path: str) -> None:
        """Removes a checkpoint, if it is one of ours and not what this run started from."""
        started_from = trainer.ckpt_path
        if started_from and absolute(started_from) == absolute(path):
            return
        if _is_inside(path, str(self.dirpath)):
            trainer.strategy.remove_checkpoint(path)

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Whether there is a file or directory at ``filepath``, as rank 0 sees it."""
        is_there = exists(filepath) if trainer.is_global_zero else False
        return bool(trainer.strategy.broadcast(is_there))

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path of a checkpoint, or its name while there is no ``dirpath``.

        Args:
            metrics: Values for the fields; one that is not there counts as 0.
            filename: Name with fields, instead of that of the callback.
            ver: Number for ``-v<ver>``.
            prefix: Put in front, with a "-".

        Raises:
            ValueError: A field's format does not suit its value.

        Example::

            >>> ModelCheckpoint().format_checkpoint_name({"epoch": 3, "step": 40})
            'epoch=3-step=40.ckpt'
            >>> ModelCheckpoint(filename="{epoch:03d}-{acc:.2f}").format_checkpoint_name({"epoch": 3, "acc": 0.987})
            'epoch=003-acc=0.99.ckpt'
        """
        between = self.CHECKPOINT_JOIN_CHAR
        template = filename or self.filename or f"{{epoch}}{between}{{step}}"
        name = fill_in(template, metrics, self.auto_insert_metric_name, self.CHECKPOINT_EQUALS_CHAR)
        parts = [prefix, name, None if ver is None else f"v{ver}"]
        name = between.join(part for part in parts if part) + self.FILE_EXTENSION
        return join(self.dirpath, name) if self.dirpath else name

    def to_yaml(self, filepath: str | Path | None = None) -> None:
        """Writes ``best_k_models`` as YAML: path and score.

        Args:
            filepath: The file; default ``best_k_models.yaml`` in ``dirpath``.
        """
        path = str(filepath or join(self.dirpath or "", "best_k_models.yaml"))
        text = need("yaml").safe_dump({name: float(score) for name, score in self.best_k_models.items()})
        if is_url(path):
            with need("fsspec").open(path, "w") as stream:
                stream.write(text)
        else:
            Path(path).write_text(text)


def _in_known_units(every: Every, *given: Any) -> tuple[int | None, timedelta | None, int | None]:
    """``every`` as the argument of its unit; batches and samples have none and are counted by the loop."""
    if any(given):
        raise MisconfigurationException(
            f"`ModelCheckpoint(every={every!r})` together with `every_n_train_steps`, `train_time_interval` or"
            " `every_n_epochs`: give one of them.",
            subject=every,
        )
    interval = None if every.seconds is None else timedelta(seconds=every.seconds)
    return every.steps or (0 if every.unit in ("batches", "samples") else None), interval, every.epochs


def _never_due(callback: ModelCheckpoint, trainer: Trainer) -> str | None:
    """The message for a run that is too short to save anything by the trigger; None for all others."""
    reach, name, result = reach_of(trainer), type(callback).__name__, "it saves no checkpoint"
    if callback._counts_in_loop:
        assert callback._every is not None
        return never_due(name, "every", callback._every, reach, result)
    if callback._every_n_train_steps:
        every = Every(steps=callback._every_n_train_steps)
        return never_due(name, "every_n_train_steps", every, reach, result, unit="steps")
    if not callback._every_n_epochs:
        return None
    if not callback._saves_at_epoch_end(trainer) and no_validation(trainer, reach) is not None:
        return (
            f"`{name}` saves after a validation, and this run is too short for one, so {result}. Type"
            f" `{name}(save_on_train_epoch_end=True)` to save at the end of an epoch."
        )
    return never_due(name, "every_n_epochs", Every(epochs=callback._every_n_epochs), reach, result, unit="epochs")


def _is_inside(path: str, directory: str) -> bool:
    if is_url(path):
        return path.startswith(directory.rstrip("/") + "/")
    # The link itself counts, not what it leads to.
    parent = Path(os.path.realpath(os.path.dirname(path)))
    return parent.is_relative_to(os.path.realpath(directory))


def default_dirpath(trainer: Trainer) -> str:
    """Where the first logger keeps its files, or the root directory of the trainer."""
    root = trainer.default_root_dir
    if not trainer.loggers:
        return join(root, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return join(logger.save_dir or root, str(logger.name or ""), version, "checkpoints")


def _link(path: str, target: str) -> None:
    """Makes ``path`` a relative link to ``target``, or a copy of it where there are no links."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.partial"
    try:
        os.symlink(os.path.relpath(target, os.path.dirname(path)), temporary)
    except OSError:
        copy = shutil.copytree if os.path.isdir(target) else shutil.copy
        copy(target, temporary)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    os.replace(temporary, path)
