"""Checkpoint: what all callbacks that write checkpoints have in common."""

from __future__ import annotations

from typing import ClassVar

from fulmen.callback import Callback

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Base class of callbacks that write checkpoints; a trainer that has one adds no ``ModelCheckpoint`` of its own.

    Such callbacks run after all others, and at the end of a training epoch also after the module, so that they see what
    was logged and save what was changed there.
    """

    order: ClassVar[int] = 1
    after_module: ClassVar[frozenset[str]] = frozenset({"on_train_epoch_end"})
