"""Checkpoints of older layouts, brought to the present one.

``RULES`` says which change follows which version. Each rule is one function that changes a copy; what it replaces is
built anew, so that the checkpoint it was given stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fulmen.checkpoint.format import (
    CALLBACKS,
    EPOCH,
    GLOBAL_STEP,
    LEGACY_VERSION,
    LIGHTNING_VERSION,
    LOOPS,
    VERSION,
    listed,
)
from fulmen.errors import CheckpointError, PossibleUserWarning
from fulmen.ranks import rank_zero_info, rank_zero_warn

__all__ = ["RULES", "migrate"]

Checkpoint = dict[str, Any]

# entries of before 0.10 -> the callback whose state they became, and the name in it
_FLAT_STATES = {
    "checkpoint_callback_best": ("ModelCheckpoint", "best_model_score"),
    "checkpoint_callback_best_model_score": ("ModelCheckpoint", "best_model_score"),
    "checkpoint_callback_best_model_path": ("ModelCheckpoint", "best_model_path"),
    "early_stop_callback_wait": ("EarlyStopping", "wait_count"),
    "early_stop_callback_patience": ("EarlyStopping", "patience"),
}
_APEX_STATES = ("amp_scaling_state", "ApexMixedPrecisionPlugin")
_SCALER_STATES = ("native_amp_scaling_state", "NativeMixedPrecisionPlugin", "MixedPrecisionPlugin")
_SCALER_STATE = "MixedPrecision"
# parts of the names of loop states before 2.0 -> those of today
_RENAMED_LOOPS = (
    ("epoch_loop.batch_loop.optimizer_loop.", "epoch_loop.automatic_optimization."),
    ("epoch_loop.batch_loop.manual_loop.", "epoch_loop.manual_optimization."),
    ("epoch_loop.val_loop.epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"),
)
_DROPPED_LOOPS = ("dataloader_progress", "batch_loop.state_dict", "val_loop.epoch_loop.state_dict")


def migrate(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in the present layout.

    Args:
        checkpoint: The content of a checkpoint of any version; left as it is.

    Returns:
        The very same object if it has this layout, else a new dict that keeps the old version under
        `legacy_pytorch-lightning_version`.

    Raises:
        CheckpointError: This is no checkpoint but something else that `torch.save` wrote.

    Warns:
        PossibleUserWarning: A newer version wrote it.
    """
    if not isinstance(checkpoint, Mapping) or VERSION not in checkpoint:
        raise _no_checkpoint(checkpoint)
    written_by = checkpoint[VERSION]
    version = _parse(written_by)
    if version > _parse(LIGHTNING_VERSION):
        rank_zero_warn(
            f"The checkpoint was written by version {written_by}, which is newer than the layout {LIGHTNING_VERSION} "
            f"known here; what is new in it may be ignored or fail to load.",
            category=PossibleUserWarning,
        )
    rules = [rule for below, rule in RULES if version < below]
    if not rules:
        return checkpoint
    migrated = dict(checkpoint)
    for rule in rules:
        rule(migrated)
    migrated[LEGACY_VERSION] = written_by
    migrated[VERSION] = LIGHTNING_VERSION
    rank_zero_info(
        f"The checkpoint of version {written_by} was brought to the layout of {LIGHTNING_VERSION} in memory. To do so "
        f"with the file as well, type `python -m fulmen.utilities.upgrade_checkpoint PATH`."
    )
    return migrated


def _no_checkpoint(content: Any) -> CheckpointError:
    if not isinstance(content, Mapping):
        return CheckpointError(f"A checkpoint is a dict, and the file holds an object of {type(content).__name__}.")
    message = f"The file holds a dict, but no checkpoint: the key {VERSION!r} is missing among {listed(content)}."
    if content and all(isinstance(value, Tensor) for value in content.values()):
        message += " It looks like a plain state dict; type `model.load_state_dict(torch.load(path))`."
    return CheckpointError(message)


def _parse(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.0.0rc1" is (2, 0, 0)."""
    matched = re.match(r"\d+(?:\.\d+)*", str(version))
    return tuple(int(part) for part in matched.group().split(".")) if matched else (0,)


# ------------------------------------------------------------------------------------------------ the rules


def _flat_states_into_callbacks(checkpoint: Checkpoint) -> None:
    """Before 0.10 the states of two callbacks were entries of the checkpoint itself."""
    states = dict(checkpoint.get(CALLBACKS, {}))
    for key, (callback, name) in _FLAT_STATES.items():
        if key in checkpoint:
            states[callback] = {**states.get(callback, {}), name: checkpoint.pop(key)}
    if states:
        checkpoint[CALLBACKS] = states


def _names_instead_of_classes(checkpoint: Checkpoint) -> None:
    """Before 1.5 the class of a callback was the key of its state."""
    if states := checkpoint.get(CALLBACKS):
        named = {key.__qualname__ if isinstance(key, type) else key: state for key, state in states.items()}
        checkpoint[CALLBACKS] = named


def _counters_into_loops(checkpoint: Checkpoint) -> None:
    """Before 1.6 the counters were two numbers: the epoch to go on with, and the steps done."""
    if LOOPS in checkpoint or EPOCH not in checkpoint or GLOBAL_STEP not in checkpoint:
        return
    epochs, steps = checkpoint[EPOCH], checkpoint[GLOBAL_STEP]
    batch = {**_progress(0, "started", "processed"), "is_last_batch": False}
    checkpoint[LOOPS] = {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": steps},
            "epoch_loop.batch_progress": batch,
            "epoch_loop.scheduler_progress": _progress(0),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {"step": _progress(steps), "zero_grad": _progress(0, "started")}
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": _progress(steps),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": batch,
            "epoch_progress": _progress(epochs, "started", "processed", current=epochs),
        }
    }


def _progress(total: int, *more: str, current: int = 0) -> dict[str, Any]:
    marks = ("ready", "completed", *more)
    return {"total": dict.fromkeys(marks, total), "current": dict.fromkeys(marks, current)}


def _batches_that_stepped(checkpoint: Checkpoint) -> None:
    """Before 1.6.5 nobody counted the batches with a step, the x axis of the loggers."""
    if (fit := _fit_loop(checkpoint)) is not None:
        counted = {"_batches_that_stepped": checkpoint.get(GLOBAL_STEP, 0), **fit.get("epoch_loop.state_dict", {})}
        checkpoint[LOOPS] = {**checkpoint[LOOPS], "fit_loop": {**fit, "epoch_loop.state_dict": counted}}


def _fit_loop(checkpoint: Checkpoint) -> dict[str, Any] | None:
    fit: dict[str, Any] | None = (checkpoint.get(LOOPS) or {}).get("fit_loop")
    return fit


def _shorter_keys_of_model_checkpoints(checkpoint: Checkpoint) -> None:
    """Before 1.9 `save_on_train_epoch_end` was part of the key of a ModelCheckpoint's state."""
    states = checkpoint.get(CALLBACKS)
    if not states:
        return
    renamed: dict[Any, Any] = {}
    for key, state in states.items():
        shorter = re.sub(r", 'save_on_train_epoch_end': \w+(?=\}$)", "", key) if isinstance(key, str) else key
        if shorter in renamed:
            rank_zero_warn(
                f"Two callbacks of the checkpoint have the key {shorter!r} now; only the first one's state is restored."
            )
            shorter = key
        renamed[shorter] = state
    checkpoint[CALLBACKS] = renamed


def _no_apex(checkpoint: Checkpoint) -> None:
    """The state of Apex has no reader since 2.0."""
    if found := [key for key in _APEX_STATES if checkpoint.pop(key, None) is not None]:
        rank_zero_warn(f"The checkpoint holds the state of Apex ({', '.join(found)}), which nothing reads any more.")


def _flat_loops(checkpoint: Checkpoint) -> None:
    """Before 2.0 a loop over batches was inside of each loop over loaders."""
    if loops := checkpoint.get(LOOPS):
        checkpoint[LOOPS] = {
            name: dict(_renamed(key, state, is_fit=name == "fit_loop") for key, state in states.items() if _lives(key))
            for name, states in loops.items()
        }


def _lives(key: str) -> bool:
    return not key.endswith(_DROPPED_LOOPS)


def _renamed(key: str, state: Any, is_fit: bool) -> tuple[str, Any]:
    if not is_fit:
        return key.removeprefix("epoch_loop."), state
    for old, new in _RENAMED_LOOPS:
        key = key.replace(old, new)
    if key.endswith("optim_progress"):
        state = {name: value for name, value in state.items() if name != "optimizer_position"}
    return key, state


def _renamed_scaler(checkpoint: Checkpoint) -> None:
    """The state of the gradient scaler was under other names up to 2.0."""
    for key in _SCALER_STATES:
        if (state := checkpoint.pop(key, None)) is not None:
            checkpoint[_SCALER_STATE] = state


RULES: tuple[tuple[tuple[int, ...], Callable[[Checkpoint], None]], ...] = (
    ((0, 10), _flat_states_into_callbacks),
    ((1, 5), _names_instead_of_classes),
    ((1, 6), _counters_into_loops),
    ((1, 6, 5), _batches_that_stepped),
    ((1, 9), _shorter_keys_of_model_checkpoints),
    ((2, 0), _no_apex),
    ((2, 0), _flat_loops),
    ((2, 1), _renamed_scaler),
)
"""What changed, and the version that first wrote it the new way; in the order in which it is done."""
