"""Tracebacks that show the user's line first."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from fulmen.errors import CheckpointError, MisconfigurationException
from fulmen.ranks import rank_zero_info

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep


def show_user_first(error: BaseException, trainer: Trainer) -> None:
    """Takes fulmen's own frames out of a traceback that ends in other code, and notes where the run was.

    Frames of torch's between the user's, of a wrapper or an optimizer that calls back, are taken out as well. Frames of
    ours say something only about an error of ours: they stay if fulmen raised the exception without meaning to, and if
    FULMEN_FULL_TRACEBACK is set.

    Args:
        error: What was raised.
        trainer: The run.
    """
    note = where(trainer)
    if note and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    frames = _frames(error.__traceback__)
    meant = isinstance(error, (MisconfigurationException, CheckpointError))
    if os.environ.get("FULMEN_FULL_TRACEBACK") or not frames or (_ours(frames[-1]) and not meant):
        return
    kept = None
    users_seen = False
    for frame in reversed(frames):
        between = _ours(frame) or (users_seen and _torchs(frame))
        users_seen = users_seen or not (_ours(frame) or _torchs(frame))
        if not between:
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    error.__traceback__ = kept


def where(trainer: Trainer) -> str:
    """Where a run is, in one line."""
    stage = trainer.state.stage
    fit = trainer.fit_loop
    if stage is None or (trainer.training and fit.batch_idx < 0):
        return ""
    if trainer.training:
        counts = fit.batch_progress.current
        place = "batch" if counts.completed < counts.ready else "after batch"
        return f"During fit: epoch {trainer.current_epoch}, {place} {fit.batch_idx}, global step {trainer.global_step}."
    return (
        f"During {trainer.state.fn}: {stage.value}, epoch {trainer.current_epoch}, global step {trainer.global_step}."
    )


def tell_notes(error: BaseException, what: str) -> None:
    """Says the notes of an exception that ends the process without a traceback, under which they would stand."""
    rank_zero_info("\n".join([what, *getattr(error, "__notes__", ())]))


def place(trainer: Trainer) -> str:
    """Where a run is, in words that are the same on all processes while they keep step."""
    stage, fit = trainer.state.stage, trainer.fit_loop
    if stage is None:
        return ""
    batch = f", batch {fit.batch_idx}" if trainer.training and fit.batch_idx >= 0 else ""
    return f"{stage.value}, epoch {trainer.current_epoch}{batch}"


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def _torchs(frame: TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(_TORCH)


def _ours(frame: TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(_HERE)
