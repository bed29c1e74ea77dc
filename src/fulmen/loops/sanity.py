"""The sanity check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fulmen.fabric.seed import isolate_rng
from fulmen.states import RunningStage

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def sanity_check(trainer: Trainer) -> None:
    """Runs a few validation batches before training, so that errors in validation show before an epoch is spent."""
    resumed = trainer.fit_loop.resumed or trainer._loaded_from is not None
    if not trainer.enable_validation or not trainer.num_sanity_val_steps or resumed:
        return
    loop = trainer.fit_loop.val_loop
    trainer.state.stage = RunningStage.SANITY_CHECKING
    with isolate_rng(), torch.no_grad():
        trainer.hooks.call("on_sanity_check_start")
        loop.run(trainer.num_sanity_val_steps)
        trainer.book.forget()
        trainer.hooks.call("on_sanity_check_end")
    loop.batch_progress.reset()
    loop.forget_seen()
    trainer.book.forget()
    trainer.state.stage = RunningStage.TRAINING
