"""What datamodule, module and callbacks make before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.datahooks import DataHooks
from fulmen.hooks import opened, overrides

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def set_up_owners(trainer: Trainer) -> None:
    """Lets datamodule, module and callbacks make what the run needs."""
    prepare_data(trainer)
    for logger in trainer.loggers:
        getattr(logger, "experiment", None)
    strategy = trainer.strategy
    strategy.barrier("before setup")
    trainer.hooks.call("setup", trainer.state.fn)
    strategy.barrier("after setup")
    with strategy.model_sharded_context(), strategy.module_init_context():
        trainer._call_module("configure_model")


def share_versions(trainer: Trainer) -> None:
    """Lets all processes take the versions that rank 0 finds for its loggers, before it makes their folders."""
    if trainer.world_size > 1:
        for logger in trainer.loggers:
            if hasattr(logger, "share_version"):
                logger.share_version(trainer.strategy.broadcast)


def prepare_data(trainer: Trainer) -> None:
    """Lets datamodule and module fetch their data: on one process of each machine, or of all; the others wait."""
    for owner in (trainer.data.datamodule, trainer.lightning_module):
        if owner is None:
            continue
        if trainer.local_rank == 0 if owner.prepare_data_per_node else trainer.global_rank == 0:
            opened(trainer.book, "prepare_data", owner.prepare_data)()
        if overrides(owner, "prepare_data", DataHooks):
            trainer.strategy.wait_long("prepare_data")
