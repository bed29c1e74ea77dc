"""StochasticWeightAveraging: average the weights of the last epochs, trained with a constant learning rate."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.loops.schedulers import Schedulers
from fulmen.optim import LRSchedulerConfig
from fulmen.ranks import rank_zero_info, rank_zero_warn
from fulmen.states import TrainerFn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["StochasticWeightAveraging"]

_AverageFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_UNSUPPORTED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class StochasticWeightAveraging(Callback):
    """Averages the weights at the start of each of the last epochs, and trains these with a learning rate of their own.

    After "Averaging Weights Leads to Wider Optima and Better Generalization" (Izmailov et al., 2018). From the epoch of
    the start on, the module's scheduler is replaced by one that anneals the learning rate to ``swa_lrs``. At the end
    of training the average is put into the module. If that has batch norm, one more epoch is run over the training data
    (``max_epochs + 1``), forward only, to find the statistics that fit the averaged weights. It counts and logs no
    steps; its metrics of the epoch and its validation are those of the averaged weights, logged at the last step.

    Args:
        swa_lrs: The learning rate to anneal to: one, or one for each parameter group.
        swa_epoch_start: Number of the first epoch that counts, beginning with 1, or a fraction of ``max_epochs``.
        annealing_epochs: How many epochs the annealing takes.
        annealing_strategy: Its shape, "cos" or "linear".
        avg_fn: ``(average, parameter, num_averaged) -> average``; None for the plain mean.
        device: Where the average is kept; None for the device of the module.

    Attributes:
        n_averaged: How many states of the weights are in the average.

    Raises:
        MisconfigurationException: An argument is none of the above, there are several optimizers or schedulers, or the
            strategy spreads the weights over devices.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: _AverageFunction | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008 - never changed
    ) -> None:
        super().__init__()
        self._check(swa_lrs, swa_epoch_start, annealing_strategy, avg_fn, device)
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy: Literal["cos", "linear"] = annealing_strategy
        self._avg_fn = avg_fn or self.avg_fn
        self._device = device
        self.n_averaged = torch.tensor(0)
        self.momenta: dict[_BatchNorm, float | None] = {}
        self._first_epoch = 1
        self._max_epochs = 0
        self._has_extra_epoch = False
        self._latest_update_epoch = -1
        self._average: nn.Module | None = None
        self._average_state: dict[str, Any] | None = None
        self._scheduler: SWALR | None = None
        self._scheduler_state: dict[str, Any] | None = None

    @staticmethod
    def _check(
        swa_lrs: object, swa_epoch_start: object, annealing_strategy: object, avg_fn: object, device: object
    ) -> None:
        in_range = isinstance(swa_epoch_start, int) and swa_epoch_start >= 1
        in_range |= isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        are_rates = bool(rates) and all(isinstance(rate, float) and rate > 0 for rate in rates)
        checks = {
            "swa_epoch_start": (in_range, swa_epoch_start, "a whole number of at least 1, or a float from 0 to 1"),
            "swa_lrs": (are_rates, swa_lrs, "a positive float, or a list of one for each parameter group"),
            "annealing_strategy": (annealing_strategy in ("cos", "linear"), annealing_strategy, "'cos' or 'linear'"),
            "avg_fn": (avg_fn is None or callable(avg_fn), avg_fn, "(average, parameter, num_averaged) -> average"),
            "device": (
                device is None or isinstance(device, (torch.device, str)),
                device,
                "a torch.device, its name, or None for that of the module",
            ),
        }
        for name, (is_right, value, expected) in checks.items():
            if not is_right:
                raise MisconfigurationException(
                    f"`StochasticWeightAveraging({name}={value!r})`: expected {expected}.", subject=value
                )

    @property
    def swa_start(self) -> int:
        """Index of the first epoch at whose start the average is updated."""
        return max(self._first_epoch - 1, 0)

    @property
    def swa_end(self) -> int:
        """Index of the last epoch at whose start the average is updated."""
        return self._max_epochs - 1

    # ------------------------------------------------------------------------------------------------ before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that spread the weights, and forgets a former fit."""
        if stage != TrainerFn.FITTING:
            return
        if _UNSUPPORTED & {cls.__name__ for cls in type(trainer.strategy).__mro__}:
            raise MisconfigurationException(
                f"`StochasticWeightAveraging` needs the whole module on each device; {type(trainer.strategy).__name__}"
                " spreads it. Use another strategy, e.g. 'ddp'.",
                subject=trainer.strategy,
            )
        self.n_averaged = torch.tensor(0)
        self._latest_update_epoch = -1
        self._average = self._average_state = self._scheduler = self._scheduler_state = None
        self.momenta = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides which epochs count, and makes the average; in a resumed fit, takes back what there was."""
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                "`StochasticWeightAveraging` works with one optimizer and at most one scheduler;"
                f" `configure_optimizers` returned {len(trainer.optimizers)} and {len(trainer.lr_scheduler_configs)}.",
                subject=self,
            )
        limit = trainer.max_epochs
        if limit is None or limit == -1:
            raise MisconfigurationException(
                "`StochasticWeightAveraging` needs to know which epochs are the last: set `Trainer(max_epochs=...)`.",
                subject=self,
            )
        start = self._swa_epoch_start
        self._max_epochs = limit
        self._first_epoch = int(limit * start) if isinstance(start, float) else start
        self._average = deepcopy(pl_module).to(self._device or pl_module.device)
        if self._average_state is not None:
            self._average.load_state_dict(self._average_state)
            self._average_state = None
        if self._scheduler_state is not None:
            self._swap_scheduler(trainer)  # before the states of schedulers are restored: this one takes its place
            self._scheduler_state = None
        self._has_extra_epoch = self.pl_module_contains_batch_norm(pl_module)
        if self._has_extra_epoch:
            trainer.fit_loop.max_epochs = limit + 1

    # ------------------------------------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the epoch of the batch-norm statistics, if a checkpoint was taken in it."""
        if trainer.fit_loop.resumed and self._is_extra(trainer):
            self._learn_statistics(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Updates the average if the epoch counts, and begins the extra epoch with the averaged weights."""
        epoch = trainer.current_epoch
        if self.swa_start <= epoch <= self.swa_end:
            if self._scheduler is None:
                self._swap_scheduler(trainer)
            if epoch > self._latest_update_epoch:
                assert self._average is not None
                self.update_parameters(self._average, pl_module, self.n_averaged, self._avg_fn)
                self._latest_update_epoch = epoch
        elif self._is_extra(trainer):
            assert self._average is not None
            self.transfer_weights(self._average, pl_module)
            self.reset_batch_norm_and_save_state(pl_module)
            self._learn_statistics(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        """In the extra epoch all processes validate with the statistics of all of them."""
        self._share_statistics(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        """Ends the extra epoch."""
        if self._is_extra(trainer):
            self._share_statistics(trainer)
            self._end_statistics(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the module, unless the extra epoch has done so."""
        if self._average is None or not self.n_averaged or trainer.current_epoch > self._max_epochs:
            return
        self.transfer_weights(self._average, pl_module)
        if self._has_extra_epoch:
            rank_zero_warn(
                f"`StochasticWeightAveraging`: training ended in epoch {trainer.current_epoch}, before the epoch that"
                " finds the batch-norm statistics of the averaged weights. Do that with"
                " `torch.optim.swa_utils.update_bn(train_dataloader, model)`."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets ``max_epochs`` back to what the user gave."""
        self._take_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undoes what is changed for the time of training."""
        if self._is_extra(trainer):
            self._end_statistics(trainer)
        self._take_back(trainer)

    def _take_back(self, trainer: Trainer) -> None:
        if self._has_extra_epoch and trainer.state.fn == TrainerFn.FITTING:
            trainer.fit_loop.max_epochs = self._max_epochs
            self._has_extra_epoch = False

    def _is_extra(self, trainer: Trainer) -> bool:
        return self._has_extra_epoch and trainer.current_epoch == self._max_epochs

    def _swap_scheduler(self, trainer: Trainer) -> None:
        """Puts the scheduler of the last epochs into the place of the module's."""
        fit, configs = trainer.fit_loop, trainer.lr_scheduler_configs
        self._scheduler = SWALR(
            trainer.optimizers[0],
            swa_lr=self._swa_lrs,  # type: ignore[arg-type]  # takes a list, too
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
        )
        if configs:
            rank_zero_info(f"Swapping scheduler `{type(configs[0].scheduler).__name__}` for `SWALR`")
        configs[:] = [LRSchedulerConfig(self._scheduler)]
        fit.schedulers = Schedulers(trainer, configs, fit.schedulers.steps)
        fit.rebind()  # a scheduler wraps its optimizer's `step`, to see that it is called

    # ------------------------------------------------------------------------------------------------ averaging

    @staticmethod
    def avg_fn(averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor) -> Tensor:
        """The mean of what was averaged so far and one more.

        Args:
            averaged_model_parameter: The mean so far.
            model_parameter: What is added to it.
            num_averaged: How many are in the mean so far.
        """
        return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (num_averaged + 1)

    @staticmethod
    def update_parameters(
        average_model: nn.Module, model: nn.Module, n_averaged: Tensor, avg_fn: _AverageFunction
    ) -> None:
        """Adds the parameters of ``model`` to the average, and counts up ``n_averaged``."""
        is_first = int(n_averaged) == 0
        with torch.no_grad():
            for average, parameter in zip(average_model.parameters(), model.parameters(), strict=True):
                current = parameter.to(average.device)
                average.copy_(current if is_first else avg_fn(average, current, n_averaged.to(average.device)))
        n_averaged += 1

    @staticmethod
    def transfer_weights(src_pl_module: nn.Module, dst_pl_module: nn.Module) -> None:
        """Copies the parameters of one module into another."""
        with torch.no_grad():
            for source, target in zip(src_pl_module.parameters(), dst_pl_module.parameters(), strict=True):
                target.copy_(source)

    # ------------------------------------------------------------------------------------------------ batch norm

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Whether any part learns statistics of its inputs; one in eval mode does not."""
        return bool(_learning(pl_module))

    def reset_batch_norm_and_save_state(self, pl_module: nn.Module) -> None:
        """Forgets the statistics, so that the next ones are the plain mean over the batches seen from here on."""
        for layer in _learning(pl_module):
            layer.reset_running_stats()
        self._average_statistics(pl_module)

    def reset_momenta(self) -> None:
        """Lets batch norm learn as before."""
        for layer, momentum in self.momenta.items():
            layer.momentum = momentum
        self.momenta = {}

    def _average_statistics(self, pl_module: nn.Module) -> None:
        self.momenta = {layer: layer.momentum for layer in _learning(pl_module)}
        for layer in self.momenta:
            layer.momentum = None

    def _share_statistics(self, trainer: Trainer) -> None:
        """Averages what each process has learned from its part of the data."""
        for layer in self.momenta if trainer.world_size > 1 else ():
            for statistics in (layer.running_mean, layer.running_var):
                assert statistics is not None
                statistics.copy_(trainer.strategy.reduce(statistics, None, "mean"))

    def _learn_statistics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.momenta:  # resumed: the statistics go on from those of the checkpoint
            self._average_statistics(pl_module)
        trainer.fit_loop.updates = False
        trainer.fit_loop.rebind()

    def _end_statistics(self, trainer: Trainer) -> None:
        self.reset_momenta()
        trainer.fit_loop.updates = True
        trainer.fit_loop.rebind()

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The average, how many are in it, and its scheduler."""
        return {
            "n_averaged": int(self.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if self._scheduler is None else self._scheduler.state_dict(),
            "average_model_state": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, when fit starts."""
        self.n_averaged = torch.tensor(int(state_dict["n_averaged"]))
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        self._scheduler_state = state_dict["scheduler_state"]
        self._average_state = state_dict["average_model_state"]


def _learning(module: nn.Module) -> list[_BatchNorm]:
    parts = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return [part for part in parts if part.running_mean is not None and part.training]
