"""LightningModule: a model with its steps and its optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.book import check_plain, items_of, warn_unattached
from fulmen.datahooks import CheckpointHooks, DataHooks
from fulmen.errors import MisconfigurationException
from fulmen.export import Exporting
from fulmen.fabric.processes import map_numbers
from fulmen.hparams import HyperparametersMixin, load_module, restricted_classmethod
from fulmen.modulehooks import ModuleHooks
from fulmen.standin import TrainerStandIn

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric
    from fulmen.optim import LightningOptimizer
    from fulmen.trainer import Trainer

#: Where a module keeps what stood in the place of its compiled methods (see ``fulmen.compiled``).
COMPILED = "_before_compilation"


class LightningModule(Exporting, ModuleHooks, DataHooks, CheckpointHooks, HyperparametersMixin, nn.Module):
    """A PyTorch module that says how it is trained.

    Override ``training_step`` and ``configure_optimizers``; ``validation_step``, ``test_step``, ``predict_step`` and
    the
    hooks as you need them. It stays a plain ``nn.Module`` in every other respect.

    Example:
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(64, 10)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         loss = nn.functional.cross_entropy(self.layer(x), y)
        ...         self.log("train_loss", loss)
        ...         return loss
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters(), lr=1e-3)
    """

    __jit_unused_properties__: ClassVar[list[str]] = [
        "_runner",
        "automatic_optimization",
        "current_epoch",
        "device",
        "device_mesh",
        "dtype",
        "example_input_array",
        "fabric",
        "global_rank",
        "global_step",
        "hparams",
        "hparams_initial",
        "local_rank",
        "logger",
        "loggers",
        "on_gpu",
        "strict_loading",
        "trainer",
    ]

    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trainer: Trainer | None = None
        self._fabric: Fabric | None = None
        self._fabric_optimizers: list[Any] = []
        self._device = torch.device("cpu")
        self._dtype: torch.dtype = torch.get_default_dtype()
        self._automatic_optimization = True
        self._strict_loading: bool | None = None
        self._example_input_array: Any = None
        self._device_mesh: Any = None
        self._toggled: dict[nn.Parameter, bool] = {}

    # ------------------------------------------------------------------------------------------------ logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Logs a value: to the loggers, the progress bar and for callbacks to monitor. Never waits for the device.

        Args:
            name: The key. Logged by step and by epoch it becomes ``<name>_step`` and ``<name>_epoch``.
            value: A number, a tensor with one element, or a torchmetrics metric.
            prog_bar: Whether the progress bar shows it.
            logger: Whether the loggers get it (default yes).
            on_step: Log the value of this batch. Default: yes in training hooks, no in evaluation.
            on_epoch: Log the reduced value of the epoch. Default: no in training steps, yes elsewhere.
            reduce_fx: How the epoch's values are reduced: "mean", "sum", "min" or "max".
            enable_graph: Accepted for compatibility; values are always detached.
            sync_dist: Whether the value is reduced over all processes.
            sync_dist_group: The process group to reduce over.
            add_dataloader_idx: Whether the index of one of several loaders is appended to the key.
            batch_size: Weight of this value in an epoch's mean; taken from the batch if not given.
            metric_attribute: The attribute under which a torchmetrics metric is found, if it is not a submodule.
            rank_zero_only: Whether only rank 0 logs it.

        Raises:
            MisconfigurationException: Logging is not possible in this hook, or not with these arguments.
            ValueError: ``value`` cannot be logged.
        """
        trainer = self._trainer
        if trainer is None:
            self._log_without_trainer({name: value}, logger)
            return
        options = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            enable_graph,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            metric_attribute,
            rank_zero_only,
        )
        trainer.book.log(name, value, options, batch_size)

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Logs several values with the same arguments; see ``log``.

        Args:
            dictionary: Values by name, or a torchmetrics ``MetricCollection``.
            prog_bar: See ``log``, like the rest.
            logger: See ``log``.
            on_step: See ``log``.
            on_epoch: See ``log``.
            reduce_fx: See ``log``.
            enable_graph: See ``log``.
            sync_dist: See ``log``.
            sync_dist_group: See ``log``.
            add_dataloader_idx: See ``log``.
            batch_size: See ``log``.
            rank_zero_only: See ``log``.
        """
        if self._trainer is None and self.fabric is not None:
            self._log_without_trainer(dictionary, logger)
            return
        for name, value in items_of(dictionary):
            self.log(
                name,
                value,
                prog_bar,
                logger,
                on_step,
                on_epoch,
                reduce_fx,
                enable_graph,
                sync_dist,
                sync_dist_group,
                add_dataloader_idx,
                batch_size,
                None,
                rank_zero_only,
            )

    def _log_without_trainer(self, metrics: Mapping[str, Any], logger: bool | None) -> None:
        fabric = self.fabric
        if fabric is None:
            warn_unattached(*metrics)
        elif logger is not False:
            check_plain(metrics)
            fabric.log_dict(metrics)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints on rank 0, above the progress bar if there is one."""
        self.trainer.print(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------ surroundings

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module; under Fabric what answers in its place; RuntimeError without either."""
        if self._trainer is None:
            if self._fabric is not None:
                return TrainerStandIn(self._fabric, self._fabric_optimizers)  # type: ignore[return-value]
            raise RuntimeError(
                f"`{type(self).__name__}` is not attached to a `Trainer`: `self.trainer` exists from the call of"
                " `trainer.fit(model)` (or validate, test, predict) on."
            )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for child in self.children():
            if isinstance(child, LightningModule):
                child.trainer = trainer
        self._trainer = trainer

    @property
    def fabric(self) -> Fabric | None:
        """The Fabric that set this module up, if one did."""
        return self._fabric

    @fabric.setter
    def fabric(self, fabric: Fabric | None) -> None:
        for child in self.children():
            if isinstance(child, LightningModule):
                child.fabric = fabric
        self._fabric = fabric

    @property
    def _runner(self) -> Trainer | Fabric | None:
        """Who runs this module, if anybody does."""
        return self._trainer if self._trainer is not None else self._fabric

    @property
    def automatic_optimization(self) -> bool:
        """Whether the loop does backward and step; set to False in ``__init__`` to do it in ``training_step``."""
        return self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, value: bool) -> None:
        self._automatic_optimization = value

    @property
    def strict_loading(self) -> bool:
        """Whether the keys of a checkpoint must match those of the module; True unless set."""
        return self._strict_loading is None or self._strict_loading

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        self._strict_loading = value

    @property
    def example_input_array(self) -> Any:
        """An input of ``forward``, for summaries and graphs; None unless set."""
        return self._example_input_array

    @example_input_array.setter
    def example_input_array(self, value: Any) -> None:
        self._example_input_array = value

    @property
    def current_epoch(self) -> int:
        """Completed epochs; 0 without a trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps done, over all epochs; 0 without a trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Number of this process among all; 0 without a trainer."""
        return self._runner.global_rank if self._runner is not None else 0

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine; 0 without a trainer."""
        return self._runner.local_rank if self._runner is not None else 0

    @property
    def logger(self) -> Any | None:
        """The trainer's first logger, None without one."""
        return next(iter(self.loggers), None)

    @property
    def loggers(self) -> list[Any]:
        """The trainer's loggers."""
        return self._runner.loggers if self._runner is not None else []

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def device_mesh(self) -> Any | None:
        """The device mesh, under strategies that have one."""
        return self._device_mesh

    # ------------------------------------------------------------------------------------------------ optimisation

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer(s): one if there is one, else a list.

        Args:
            use_pl_optimizer: False gives the plain torch optimizers, whose steps are not counted.
        """
        trainer = self.trainer
        found: list[Any] = trainer.lightning_optimizers if use_pl_optimizer else trainer.optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """The scheduler(s): None, one, or a list."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass in manual optimisation, instead of ``loss.backward()``: knows precision and strategy.

        Args:
            loss: The loss.
            *args: Passed on to ``backward``.
            **kwargs: Passed on to ``backward``.
        """
        if self._trainer is None and self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
            return
        if self.automatic_optimization:
            raise MisconfigurationException(
                "`manual_backward` is for manual optimisation. Return the loss from `training_step` instead, or set"
                " `self.automatic_optimization = False` in `__init__`."
            )
        self.trainer.fit_loop.step.backward(loss, *args, **kwargs)

    def clip_gradients(
        self,
        optimizer: Optimizer | LightningOptimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients of an optimizer's parameters.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The limit; None takes the Trainer's. 0 clips nothing.
            gradient_clip_algorithm: "norm" or "value"; None takes the Trainer's.
        """
        if self._trainer is None and self._fabric is not None:
            by_value = str(gradient_clip_algorithm).lower() == "value"
            limit: Any = {"clip_val" if by_value else "max_norm": gradient_clip_val}
            self._fabric.clip_gradients(self, cast(Optimizer, optimizer), **limit)
            return
        trainer = self.trainer
        value = _agree("gradient_clip_val", gradient_clip_val, trainer.gradient_clip_val, 0)
        algorithm = _agree("gradient_clip_algorithm", gradient_clip_algorithm, trainer.gradient_clip_algorithm, "norm")
        trainer.precision_plugin.clip_gradients(
            getattr(optimizer, "_optimizer", optimizer), value, _known_algorithm(algorithm)
        )

    def toggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """From here on only the parameters of ``optimizer`` require gradients, until ``untoggle_optimizer``.

        Args:
            optimizer: Whose parameters stay on.
        """
        everyone = {
            p: p.requires_grad for opt in self.trainer.optimizers for g in opt.param_groups for p in g["params"]
        }
        for parameter in everyone:
            parameter.requires_grad = False
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad = everyone[parameter]
        self._toggled = everyone

    def untoggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Takes back ``toggle_optimizer``.

        Args:
            optimizer: The one that was toggled.
        """
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, requires_grad in self._toggled.items():
            if parameter not in own:
                parameter.requires_grad = requires_grad
        self._toggled = {}

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> Iterator[None]:
        """``toggle_optimizer`` and ``untoggle_optimizer`` around a block.

        Args:
            optimizer: Whose parameters stay on.
        """
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Gathers tensors from all processes along a new first dimension; on one process there is none.

        Args:
            data: Tensors in any nesting; numbers in it become tensors.
            group: The process group, None for all.
            sync_grads: Whether gradients flow back through the gathering.
        """
        gather = partial(self.trainer.strategy.all_gather, group=group, sync_grads=sync_grads)
        return map_numbers(gather, data, self.device)

    # ------------------------------------------------------------------------------------------------ the module itself

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``self(...)`` computes, as in every ``nn.Module``; ``predict_step`` calls it unless overridden."""
        return super().forward(*args, **kwargs)

    def freeze(self) -> Self:
        """Freezes all parameters and puts the module into eval mode; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        return self.eval()

    def unfreeze(self) -> Self:
        """Unfreezes all parameters and puts the module into train mode; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        return self.train()

    @restricted_classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Any | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Any | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Builds the module from a checkpoint: its saved hyperparameters, then its weights.

        Args:
            checkpoint_path: Path, URL or file object.
            map_location: Where tensors go, as for ``torch.load``.
            hparams_file: A .yaml or .csv file whose values replace the saved hyperparameters.
            strict: Whether the keys must match; default ``strict_loading`` of the module.
            weights_only: As for ``torch.load``; False unpickles anything, so only for files that you trust.
            **kwargs: Arguments of the class, over the saved ones.

        Returns:
            The module, with the weights loaded.
        """
        return load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """The device the module was last moved to."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the module was last converted to."""
        return self._dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Every way of moving a module (to, cuda, half, ...) ends here; the empty probe shows where it moves to.
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        for module in self.modules():
            if isinstance(module, LightningModule):
                module._device, module._dtype = probe.device, probe.dtype
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state["_trainer"] = state["_fabric"] = state["_device_mesh"] = None
        state["_fabric_optimizers"] = []
        # A copy calls its own methods; those that were compiled here are bound to this module.
        for name, before in state.pop(COMPILED, {}).items():
            state[name] = before
            if before is None:
                del state[name]
        return state


def _agree(name: str, given: Any, trainers: Any, default: Any) -> Any:
    """The value to use when both a call and the Trainer may name one; they must not contradict each other."""
    if given is None:
        return trainers if trainers is not None else default
    if trainers is not None and given != trainers:
        raise MisconfigurationException(
            f"`clip_gradients({name}={given!r})`, but `Trainer({name}={trainers!r})`. Give it in one of the two places."
        )
    return given


def _known_algorithm(algorithm: Any) -> str:
    name = str(algorithm).lower()
    if name not in ("norm", "value"):
        raise MisconfigurationException(
            f"`clip_gradients(gradient_clip_algorithm={algorithm!r})`: expected 'norm' or 'value'."
        )
    return name
