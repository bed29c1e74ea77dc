"""GradientAccumulationScheduler: accumulate more batches, or fewer, as training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.hooks import overrides
from fulmen.module import LightningModule
from fulmen.ranks import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["GradientAccumulationScheduler"]


class GradientAccumulationScheduler(Callback):
    """Changes ``trainer.accumulate_grad_batches`` at given epochs.

    ``{4: 2, 8: 8}`` accumulates nothing in the epochs 0 to 3, two batches for each optimizer step from epoch 4 on, and
    eight from epoch 8 on. When training has ended, the trainer has its own setting again.

    Args:
        scheduling: How many batches are accumulated from an epoch (counted from 0) on.

    Attributes:
        scheduling: The same, with 1 from epoch 0 on if that was not given.
        epochs: Its epochs, in ascending order.

    Raises:
        TypeError: ``scheduling`` is empty.
        MisconfigurationException: An epoch is no int from 0 on, or a number of batches no int from 1 on.
        RuntimeError: (when training starts) the module optimises manually, or the strategy accumulates by itself.
        ValueError: (when training starts) ``Trainer(accumulate_grad_batches=...)`` is set as well.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        super().__init__()
        if not scheduling:
            raise TypeError(
                f"`GradientAccumulationScheduler({scheduling!r})`: expected a dictionary from epochs to numbers of"
                " batches, for instance `{4: 2}`."
            )
        for epoch, factor in scheduling.items():
            _check(epoch, "epoch", 0)
            _check(factor, "number of batches", 1)
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._is_applied = False

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether more than one batch is accumulated in some epoch."""
        return any(factor > 1 for factor in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """How many batches are accumulated in an epoch."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that nothing else decides about accumulation; an epoch that is resumed starts here."""
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "`GradientAccumulationScheduler` has no effect in manual optimisation, where `training_step` decides"
                " when the optimizers step. Remove the callback, or set `self.automatic_optimization = True`."
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise RuntimeError(
                f"`GradientAccumulationScheduler` cannot be used with {type(trainer.strategy).__name__}, which"
                " accumulates by itself, always the same number of batches. Remove the callback, and use"
                " `Trainer(accumulate_grad_batches=...)`."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"`Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches})` and"
                " `GradientAccumulationScheduler` both say how many batches to accumulate. Remove one of the two."
            )
        hooks = ("optimizer_step", "optimizer_zero_grad")
        own = [name for name in hooks if overrides(pl_module, name, LightningModule)]
        if own and self.going_to_accumulate_grad_batches():
            rank_zero_warn(
                f"`{type(pl_module).__name__}` overrides {' and '.join(f'`{name}`' for name in own)}: where gradients"
                " are accumulated, that is not called for each batch but for each optimizer step."
            )
        self._apply(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Applies what is scheduled for the epoch."""
        self._apply(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Leaves the trainer as it was, so that it can train again."""
        self._take_back(trainer)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Likewise, when training was ended by an exception."""
        self._take_back(trainer)

    def _apply(self, trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)
        self._is_applied = True

    def _take_back(self, trainer: Trainer) -> None:
        if self._is_applied:
            trainer.accumulate_grad_batches = 1
            self._is_applied = False


def _check(value: Any, name: str, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise MisconfigurationException(
            f"`GradientAccumulationScheduler`: {value!r} as {name}; expected an int from {least} on. For instance"
            " `{4: 2}` accumulates two batches for each step from epoch 4 on.",
            subject=value,
        )
