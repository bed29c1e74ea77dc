"""Which checkpoint ``ckpt_path`` means, and which one a run that was ended can go on from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from glob import escape
from typing import TYPE_CHECKING, Any

from fulmen.extras import available
from fulmen.paths import exists, join, modified, names_in
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def agree(trainer: Trainer, ckpt_path: Any, model_given: bool) -> str | None:
    """As ``choose``; of several processes all get what rank 0 finds, or its exception."""
    if trainer.world_size == 1:
        return choose(trainer, ckpt_path, model_given)
    path: str | None = None
    error: Exception | None = None
    try:
        path = choose(trainer, ckpt_path, model_given)
    except Exception as problem:
        error = problem
    path, error = trainer.strategy.broadcast((path, error))
    if error is not None:
        raise error
    return path


def choose(trainer: Trainer, ckpt_path: Any, model_given: bool) -> str | None:
    """The path of the checkpoint to load, None to load none.

    Args:
        trainer: Whose callbacks know about checkpoints.
        ckpt_path: A path or URL, "best", "last", "hpc", or None.
        model_given: Whether the call named a model.
    """
    asked = trainer.state.fn
    if ckpt_path is None:
        if trainer.user_ckpt_path is not None:
            ckpt_path = trainer.user_ckpt_path
        elif asked == "fit" and _was_requeued(trainer):
            return hpc(trainer)
        elif asked == "fit" and _saves_on_exception(trainer):
            return _after_exception(trainer)
        elif asked != "fit" and not model_given:
            rank_zero_warn(
                f"`Trainer.{asked}()` without a model and without `ckpt_path` takes the best checkpoint of the last"
                " fit."
                f' Write `ckpt_path="best"` to say so.'
            )
            ckpt_path = "best"
        else:
            return None
    elif trainer.user_ckpt_path is not None:
        rank_zero_warn(f"`trainer.ckpt_path` was set, but the argument `ckpt_path={ckpt_path!r}` wins.")
    if not isinstance(ckpt_path, (str, os.PathLike)):
        raise TypeError(
            f'`ckpt_path={ckpt_path!r}` is of {type(ckpt_path).__name__}. Give a path, "best", "last", or None.'
        )
    named: dict[Any, Callable[[Trainer], str | None]] = {"best": best, "last": last, "hpc": hpc}
    if ckpt_path in named:
        return named[ckpt_path](trainer)
    if not os.fspath(ckpt_path):
        raise ValueError('`ckpt_path=""` is empty. Give a path, "best", "last", or None.')
    path: str = os.fspath(ckpt_path)
    return registered(trainer, path) if path.startswith("registry") and available("litmodels") else path


def registered(trainer: Trainer, path: str) -> str:
    """The file of a model that ``path`` names in a model registry, downloaded now; else the path itself."""
    from fulmen.utilities import model_registry

    if not model_registry.is_registry_path(path):
        return path
    model_registry.download_model_from_registry(path, trainer)
    return model_registry.find_model_local_ckpt_path(path, trainer.model_registry, trainer.default_root_dir)


def best(trainer: Trainer) -> str:
    """The best checkpoint of the first checkpoint callback."""
    callbacks = trainer.checkpoint_callbacks
    if not callbacks:
        raise ValueError(
            '`ckpt_path="best"`, but there is no checkpoint callback. Add `ModelCheckpoint(monitor=...)` to the'
            " callbacks."
        )
    if len(callbacks) > 1:
        rank_zero_warn('`ckpt_path="best"` with several checkpoint callbacks takes the first one\'s best.')
    path = getattr(callbacks[0], "best_model_path", "")
    if not path:
        reason = " `fast_dev_run` saves none." if trainer.fast_dev_run else " Has `fit` saved one?"
        raise ValueError(
            f'`ckpt_path="best"`, but {type(callbacks[0]).__name__} has no best checkpoint.{reason} Pass a path,'
            f" or the module, to use its weights as they are: `trainer.{trainer.state.fn}(module)`."
        )
    return str(path)


def last(trainer: Trainer) -> str | None:
    """The newest of the "last" checkpoints in the directories of the checkpoint callbacks."""
    path = _newest_last(trainer)
    if path is None:
        rank_zero_warn('`ckpt_path="last"`: there is no last checkpoint (yet). Training starts from the beginning.')
    return path


def _newest_last(trainer: Trainer) -> str | None:
    found = [path for callback in trainer.checkpoint_callbacks for path in last_files(callback, trainer)]
    return max(found, key=modified) if found else None


def _was_requeued(trainer: Trainer) -> bool:
    """Whether SLURM runs this job once more, and the run before has left a checkpoint for it."""
    from fulmen.fabric.environments.slurm import SLURMEnvironment

    if not isinstance(trainer.plan.cluster_environment, SLURMEnvironment):
        return False
    return bool(_numbered(trainer.default_root_dir))


def _saves_on_exception(trainer: Trainer) -> bool:
    from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint

    return any(isinstance(callback, OnExceptionCheckpoint) for callback in trainer.callbacks)


def _after_exception(trainer: Trainer) -> str | None:
    """What a fit with an ``OnExceptionCheckpoint`` goes on from without being asked to; says so."""
    path = None if trainer.fast_dev_run else _newest_last(trainer)
    if path is not None:
        rank_zero_warn(
            f"`Trainer.fit()` with an `OnExceptionCheckpoint` goes on from the last checkpoint, {path}. Write"
            ' `ckpt_path="last"` to say so.'
        )
    return path


def last_files(callback: Any, trainer: Trainer) -> list[str]:
    """The files of one checkpoint callback that are its last checkpoint, or a version of it."""
    from fulmen.callbacks.model_checkpoint import default_dirpath
    from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint

    if isinstance(callback, OnExceptionCheckpoint):
        return [callback.ckpt_path] if exists(callback.ckpt_path) else []
    directory = getattr(callback, "dirpath", None) or default_dirpath(trainer)
    name = getattr(callback, "CHECKPOINT_NAME_LAST", None) or getattr(callback, "filename", "")
    if not name:
        return []
    # in the place of each field there may be anything
    parts = (escape(part) for part in re.split(r"\{.*?\}", name))
    pattern = f"{'*'.join(parts)}*{getattr(callback, 'FILE_EXTENSION', '.ckpt')}"
    return [join(directory, found) for found in names_in(directory) if fnmatchcase(found, pattern)]


def hpc(trainer: Trainer) -> str:
    """The highest-numbered ``hpc_ckpt_<n>.ckpt`` in ``default_root_dir``."""
    numbered = _numbered(trainer.default_root_dir)
    if not numbered:
        raise ValueError(f'`ckpt_path="hpc"`, but there is no `hpc_ckpt_<n>.ckpt` in {trainer.default_root_dir}.')
    return join(trainer.default_root_dir, numbered[max(numbered)])


def note_newest(trainer: Trainer, error: BaseException) -> None:
    """Notes on what has ended a fit which checkpoint it wrote last, and what to type to go on from there."""
    if trainer.state.fn != "fit" or trainer._newest_checkpoint is None:
        return
    path, step = trainer._newest_checkpoint
    if exists(path):
        error.add_note(
            f"To go on from the newest checkpoint (global step {step}): `trainer.fit(model, ckpt_path={path!r})`."
        )


def _numbered(folder: str) -> dict[int, str]:
    """The names of the checkpoints of a requeued job, by their number."""
    matches = (re.fullmatch(r"hpc_ckpt_(\d+)\.ckpt", name) for name in names_in(folder))
    return {int(match.group(1)): match.group() for match in matches if match}
