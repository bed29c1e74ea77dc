"""WeightAveraging: train one set of weights, validate and keep their average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_info, rank_zero_warn
from fulmen.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["EMAWeightAveraging", "WeightAveraging"]

_PREFIX = "module."


class WeightAveraging(Callback):
    """Averages the weights over training; validation, checkpoints and the trained module get the average.

    During a validation epoch the averaged weights are in the module, and the current ones are put aside; they come back
    at its end, or when an exception ends it. At the end of training the average stays in the module. As long as
    nothing has been averaged, the module keeps its current weights everywhere.

    A checkpoint holds the averaged weights as "state_dict", so that whatever loads it gets them, and the current ones
    as "current_model_state", with which training goes on.

    Args:
        device: Where the average is kept; None for the device of the module.
        use_buffers: Whether buffers (such as the statistics of batch norm) are averaged, too; else they are those of
            the current weights.
        **kwargs: Passed on to ``torch.optim.swa_utils.AveragedModel``: ``avg_fn`` or ``multi_avg_fn``. Without one
            the average is the plain mean.
    """

    #: What the module does at the end of a validation epoch still sees the averaged weights.
    after_module: ClassVar[frozenset[str]] = frozenset({"on_validation_epoch_end"})

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self._device = torch.device(device) if device is not None else None
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._average: AveragedModel | None = None
        self._source: LightningModule | None = None
        self._restored: tuple[dict[str, Any], dict[str, Any]] | None = None  # weights, and the average's own numbers
        self._swapped = False
        self._latest_update_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the current weights enter the average now. Override it to choose; by default after each step.

        Args:
            step_idx: Index of the optimizer step just done; None at the end of an epoch.
            epoch_idx: Index of the epoch that ends; None after a step.
        """
        return step_idx is not None

    # ------------------------------------------------------------------------------------------------ training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the average of a former fit."""
        if stage == TrainerFn.FITTING:
            self._average = self._source = self._restored = None
            self._swapped = False
            self._latest_update_step = trainer.global_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the average, when the module is complete and on its device."""
        self._source = pl_module
        source = trainer.strategy.copy_for_average(pl_module)
        arguments = self._kwargs
        if "avg_fn" not in arguments and any(hasattr(tensor, "device_mesh") for tensor in _tensors(source)):
            average = arguments.get("multi_avg_fn") or get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
            arguments = {**arguments, "multi_avg_fn": partial(_average_own_parts, average)}
        self._average = AveragedModel(source, device=self._device, use_buffers=self._use_buffers, **arguments)
        self._take_restored(trainer, pl_module)

    def _take_restored(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives a loaded average its place, as soon as both are there."""
        if self._average is None or self._restored is None:
            return
        weights, numbers = self._restored
        trainer.strategy.load_module_state_dict(self._average.module, weights, strict=pl_module.strict_loading)
        self._average.load_state_dict(numbers, strict=False)
        self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average if the batch ended with an optimizer step."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update(pl_module)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Updates the average if it is to be updated by epoch."""
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the module; the current weights are kept for checkpoints."""
        if self._has_average:
            self._swap(pl_module)

    def _update(self, pl_module: LightningModule) -> None:
        assert self._average is not None
        self._average.update_parameters(pl_module)

    # ------------------------------------------------------------------------------------------------ validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the averaged weights into the module."""
        if trainer.state.fn == TrainerFn.FITTING and self._has_average:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the current weights back into the module."""
        self._end_validation(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the current weights back if a validation is ended by an exception."""
        if trainer.state.stage == RunningStage.VALIDATING:
            self._end_validation(trainer, pl_module)

    def _end_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._swapped:
            self._swap(pl_module)

    @property
    def _has_average(self) -> bool:
        return self._average is not None and int(self._average.n_averaged) > 0

    def _swap(self, pl_module: LightningModule) -> None:
        """Exchanges the weights of module and average, in place: optimizers and wrappers refer to these tensors."""
        assert self._average is not None
        with torch.no_grad():
            for average, current in zip(_tensors(self._average.module), _tensors(pl_module), strict=True):
                kept = average.clone()
                average.copy_(current)
                current.copy_(kept)
        self._swapped = not self._swapped

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The step of the latest update; the averages are in the checkpoint itself."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self._latest_update_step = state_dict["latest_update_step"]

    def weights_to_save(self, trainer: Trainer, pl_module: LightningModule, weights: dict[str, Any]) -> dict[str, Any]:
        """The averaged weights; the module's own if it has them already, or if nothing has been averaged."""
        if self._swapped or pl_module is not self._source or not self._has_average:
            return weights
        assert self._average is not None
        return trainer.strategy.get_module_state_dict(self._average.module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the current weights and the state of the average."""
        if self._average is None or pl_module is not self._source:
            rank_zero_info(
                f"`{type(self).__name__}` has no average of this module, as it was not trained by this Trainer:"
                " the checkpoint holds the module's weights as they are."
            )
            return
        current = self._average.module if self._swapped else pl_module
        checkpoint["current_model_state"] = trainer.strategy.get_module_state_dict(current)
        state = self._average.state_dict()
        checkpoint["averaging_state"] = {name: value for name, value in state.items() if not name.startswith(_PREFIX)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gives the current weights to the module and the averaged ones to the average."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._average = self._source = None  # the module is no longer the one that was trained
            self._swapped = False
            rank_zero_info(
                f"`{type(self).__name__}`: the module has the averaged weights of the checkpoint. The current weights"
                " are only for going on with training."
            )
        elif "current_model_state" not in checkpoint:
            rank_zero_warn(
                f"The checkpoint was written without `{type(self).__name__}`: it has no averages. Training goes on from"
                " its weights, and the average begins anew."
            )
        else:
            self._restored = checkpoint["state_dict"], checkpoint["averaging_state"]
            trainer.strategy.load_module_state_dict(
                pl_module, checkpoint["current_model_state"], strict=pl_module.strict_loading
            )
            self._take_restored(trainer, pl_module)


class EMAWeightAveraging(WeightAveraging):
    """Averages the weights exponentially: ``average = decay * average + (1 - decay) * current``.

    The average begins with the current weights at the first update. Updates follow steps and epochs independently of
    each other: by default every step and no epoch. To average by epoch only, override ``should_update``.

    Args:
        device: Where the average is kept; None for the device of the module.
        use_buffers: Whether buffers are averaged, too.
        decay: How much of the average is kept at an update, in [0, 1].
        update_every_n_steps: Update after the steps whose index is a multiple of this.
        update_starting_at_step: Index of the first step that may update; None for the first of all.
        update_starting_at_epoch: Also update at the end of epochs, from the one of this index on; None for no epoch.
        **kwargs: Passed on to ``torch.optim.swa_utils.AveragedModel``.

    Raises:
        MisconfigurationException: ``decay`` or ``update_every_n_steps`` is out of range.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise MisconfigurationException(
                f"`EMAWeightAveraging(decay={decay!r})`: expected a number from 0 (no memory) to 1 (never changes),"
                " e.g. 0.999.",
                subject=decay,
            )
        if update_every_n_steps < 1:
            raise MisconfigurationException(
                f"`EMAWeightAveraging(update_every_n_steps={update_every_n_steps!r})`: expected at least 1.",
                subject=update_every_n_steps,
            )
        super().__init__(device, use_buffers, **kwargs, multi_avg_fn=partial(_average, decay))
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Every so many steps from a step on, and at the end of each epoch from an epoch on."""
        if step_idx is not None:
            is_late_enough = self.update_starting_at_step is None or step_idx >= self.update_starting_at_step
            return is_late_enough and step_idx % self.update_every_n_steps == 0
        if epoch_idx is not None and self.update_starting_at_epoch is not None:
            return epoch_idx >= self.update_starting_at_epoch
        return False


_averaging = cache(get_ema_multi_avg_fn)


def _average(decay: float, averages: Any, values: Any, num_averaged: Any) -> None:
    """What torch gives for the decay, as a function of a module: the callback may go to another process."""
    _averaging(decay)(averages, values, num_averaged)


def _average_own_parts(average: Callable[..., None], averages: Any, values: Any, num_averaged: Any) -> None:
    """Average what this process has of each tensor: no single operation takes shards and whole tensors."""
    own = [[t.to_local() if hasattr(t, "to_local") else t for t in tensors] for tensors in (averages, values)]
    average(*own, num_averaged)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())
