"""What can be read on a Trainer: its place in the run, and shortcuts to what its parts know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.hooks import overrides
from fulmen.loops.names import Results
from fulmen.module import LightningModule
from fulmen.optim import wrapped
from fulmen.ranks import rank_zero_info
from fulmen.sources import collection_of
from fulmen.states import RunningStage, TrainerState

if TYPE_CHECKING:
    from fulmen.book import Book
    from fulmen.callback import Callback
    from fulmen.clock import Clock
    from fulmen.fabric.plan import Plan
    from fulmen.fabric.strategies.base import Strategy
    from fulmen.hooks import HookTable
    from fulmen.loops.evaluate import EvaluationLoop
    from fulmen.loops.fit import FitLoop
    from fulmen.loops.predict import PredictionLoop
    from fulmen.optim import LightningOptimizer, LRSchedulerConfig
    from fulmen.signals import Signals
    from fulmen.sources import DataSources
    from fulmen.trigger import Every


def _stage(stage: RunningStage) -> property:
    """A switch that is True while the trainer is in ``stage``; setting it moves the trainer there."""

    def get(self: TrainerView) -> bool:
        return self.state.stage == stage

    def set_(self: TrainerView, value: bool) -> None:
        if value:
            self.state.stage = stage
        elif self.state.stage == stage:
            self.state.stage = None

    return property(get, set_, doc=f"Whether the trainer is in the stage {stage.value!r}.")


class TrainerView:
    """The attributes and properties of a Trainer; ``Trainer`` adds what acts."""

    is_trial: bool = False
    """Whether this runs one try of a search, in which a part of an epoch is enough."""

    plan: Plan
    state: TrainerState
    book: Book
    hooks: HookTable
    data: DataSources
    signals: Signals
    clock: Clock
    callbacks: list[Callback]
    fit_loop: FitLoop
    validate_loop: EvaluationLoop
    test_loop: EvaluationLoop
    predict_loop: PredictionLoop
    should_stop: bool
    lightning_optimizers: list[LightningOptimizer]
    user_ckpt_path: str | None
    barebones: bool
    fast_dev_run: int | bool
    accumulate_grad_batches: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: str | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    limit_predict_batches: int | float
    overfit_batches: int | float
    val_check_interval: int | float
    val_check_batch: int | float
    val_check_seconds: float | None
    val_check_every: Every | None
    max_count: Every | None
    log_every: Every | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | float
    log_every_n_steps: int
    reload_dataloaders_every_n_epochs: int
    inference_mode: bool
    detect_anomaly: bool
    use_distributed_sampler: bool
    enable_autolog_hparams: bool
    benchmark: bool | None
    deterministic: bool | str | None
    default_root_dir: str
    model_registry: str | None
    _loaded_from: str | None
    _newest_checkpoint: tuple[str, int] | None
    _loggers: list[Any]
    _settings: list[str]

    training = _stage(RunningStage.TRAINING)
    validating = _stage(RunningStage.VALIDATING)
    testing = _stage(RunningStage.TESTING)
    predicting = _stage(RunningStage.PREDICTING)
    sanity_checking = _stage(RunningStage.SANITY_CHECKING)

    @property
    def evaluating(self) -> bool:
        """Whether a validation, test or sanity check is running."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Whether the last run was ended by an exception."""
        return self.state.status == "interrupted"

    @property
    def received_sigterm(self) -> bool:
        """Whether the process was asked to end; the run leaves at the next safe point."""
        return self.signals.received

    # ------------------------------------------------------------------------------------------------ the plan

    @property
    def strategy(self) -> Strategy:
        """How the module is spread over devices."""
        return self.plan.strategy

    @property
    def accelerator(self) -> Any:
        """The kind of device."""
        return self.plan.accelerator

    @property
    def precision_plugin(self) -> Any:
        """The precision."""
        return self.plan.precision

    @property
    def precision(self) -> str:
        """The precision by its name, e.g. "bf16-mixed"."""
        return self.plan.precision.precision

    @property
    def scaler(self) -> Any | None:
        """The gradient scaler of 16-mixed, None otherwise."""
        return self.plan.precision.scaler

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self.strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self.plan.num_nodes

    @property
    def num_devices(self) -> int:
        """Number of devices on each machine."""
        return len(self.plan.devices)

    @property
    def device_ids(self) -> list[int]:
        """The index of each device; its position if it has none."""
        return [place if d.index is None else d.index for place, d in enumerate(self.plan.devices)]

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.strategy.is_global_zero

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments for a distributed sampler, None on one process."""
        return self.strategy.distributed_sampler_kwargs

    # ------------------------------------------------------------------------------------------------ model, optimizers

    @property
    def lightning_module(self) -> LightningModule:
        """The user's module."""
        module: LightningModule = self.strategy.lightning_module
        return module

    @property
    def model(self) -> Any:
        """The module as the strategy runs it (wrapped, if it wraps)."""
        return self.strategy.model

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers; in a run, others that are set take over with the next batch."""
        return self.strategy.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Any]) -> None:
        self.strategy.optimizers = list(optimizers)
        self.lightning_optimizers = wrapped(self.strategy.optimizers, self.lightning_module)
        if self.training:
            self.fit_loop.rebind()

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers, each with when it steps."""
        return self.strategy.lr_scheduler_configs

    # ------------------------------------------------------------------------------------------------ counters

    @property
    def current_epoch(self) -> int:
        """Completed epochs; inside epoch n it is n."""
        return self.fit_loop.current_epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps done, over all epochs."""
        return self.fit_loop.global_step

    @property
    def logging_step(self) -> int:
        """The x of what is logged now: batches with an optimizer step."""
        fit = self.fit_loop
        return fit.batches_that_stepped if fit.updates else max(fit.batches_that_stepped - 1, 0)

    @property
    def max_epochs(self) -> int | None:
        """Epochs at most; -1 for no limit."""
        return self.fit_loop.max_epochs

    @property
    def min_epochs(self) -> int | None:
        """Epochs at least."""
        return self.fit_loop.min_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; -1 for no limit."""
        return self.fit_loop.max_steps

    @property
    def min_steps(self) -> int | None:
        """Optimizer steps at least."""
        return self.fit_loop.min_steps

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch under way (or just done) is the epoch's last."""
        return self.fit_loop.is_last_batch

    @property
    def has_time_limit(self) -> bool:
        """Whether a Timer will end the run."""
        from fulmen.callbacks.timer import Timer

        return any(isinstance(callback, Timer) for callback in self.callbacks)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """How many optimizer steps fit will do, as far as is known; loads the training data to find out."""
        if self.max_epochs == -1:
            return math.inf if self.max_steps == -1 else self.max_steps
        if self.fit_loop.feed is None:
            rank_zero_info("The train dataloader is loaded now, to estimate the number of steps.")
            self.fit_loop.load_data()
        batches = self.num_training_batches
        if batches == math.inf:
            return self.max_steps
        steps = math.ceil(batches / self.accumulate_grad_batches) * max(self.max_epochs or 0, 1)
        return min(steps, self.max_steps) if self.max_steps != -1 else steps

    # ------------------------------------------------------------------------------------------------ data

    @property
    def datamodule(self) -> Any | None:
        """The datamodule of the last run that had one."""
        return self._datamodule

    @datamodule.setter
    def datamodule(self, datamodule: Any | None) -> None:
        self._datamodule = datamodule

    _datamodule: Any = None

    @property
    def train_dataloader(self) -> Any | None:
        """The training loaders in the collection that the user gave; None before they are loaded."""
        return collection_of(self.fit_loop.feed.loaders) if self.fit_loop.feed is not None else None

    @property
    def val_dataloaders(self) -> Any | None:
        """The validation loaders, of fit if it has any; None before they are loaded."""
        inside_fit = self._collection("validate", False, self.fit_loop.val_loop)
        return self._collection("validate", True, self.validate_loop) if inside_fit is None else inside_fit

    @property
    def test_dataloaders(self) -> Any | None:
        """The test loaders; None before they are loaded."""
        return self._collection("test", True, self.test_loop)

    @property
    def predict_dataloaders(self) -> Any | None:
        """The prediction loaders; None before they are loaded."""
        return self._collection("predict", True, self.predict_loop)

    def _collection(self, stage: str, own: bool, loop: EvaluationLoop | PredictionLoop) -> Any | None:
        return self.data.collections[stage, own] if loop.feeds else None

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch, of the last fit if none is running; infinity if not known."""
        return self.fit_loop.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        if self.state.fn == "validate":
            return self.validate_loop.num_batches
        return self.fit_loop.val_loop.num_batches

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader in the sanity check."""
        return [min(self.num_sanity_val_steps, batches) for batches in self.fit_loop.val_loop.num_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self.test_loop.num_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each prediction loader."""
        return self.predict_loop.num_batches

    @property
    def enable_validation(self) -> bool:
        """Whether fit validates: there are data, a ``validation_step`` and a limit above 0."""
        return (
            self.data.owner("validate") is not None
            and overrides(self.lightning_module, "validation_step", LightningModule)
            and self.limit_val_batches > 0
        )

    # ------------------------------------------------------------------------------------------------ callbacks,
    # loggers

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """The checkpoint callbacks."""
        from fulmen.callbacks.checkpoint import Checkpoint

        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Any | None:
        """The first checkpoint callback, None without one."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """The early stopping callbacks."""
        from fulmen.callbacks.early_stopping import EarlyStopping

        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> Any | None:
        """The first early stopping callback, None without one."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any | None:
        """The progress bar, None without one."""
        from fulmen.callbacks.progress.progress_bar import ProgressBar

        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    @property
    def loggers(self) -> list[Any]:
        """The loggers."""
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Any] | None) -> None:
        self._loggers = list(loggers) if loggers else []
        self.book.has_loggers = bool(self._loggers)

    @property
    def logger(self) -> Any | None:
        """The first logger, None without one."""
        return self._loggers[0] if self._loggers else None

    @logger.setter
    def logger(self, logger: Any | None) -> None:
        self.loggers = [logger] if logger else []

    @property
    def log_dir(self) -> str | None:
        """Where the first logger writes; ``default_root_dir`` without loggers. In a run the same on all processes."""
        from fulmen.loggers import CSVLogger, TensorBoardLogger

        if not self._loggers:
            return self.default_root_dir
        first = self._loggers[0]
        folder: str | None = first.log_dir if isinstance(first, (TensorBoardLogger, CSVLogger)) else first.save_dir
        return folder

    @property
    def _results(self) -> Results | None:
        stage = self.state.stage
        if stage is None or stage == RunningStage.PREDICTING:
            return None
        return Results(self.book, "validate" if stage == RunningStage.SANITY_CHECKING else stage.value)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The metrics that callbacks may monitor."""
        return self.book.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The metrics for the loggers."""
        return self.book.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The metrics of the progress bar, as Python numbers."""
        return self.book.progress_bar_metrics

    @property
    def ckpt_path(self) -> str | None:
        """What the last run was loaded from; set it to load from there in every run."""
        return self.user_ckpt_path if self._loaded_from is None else self._loaded_from

    @ckpt_path.setter
    def ckpt_path(self, path: str | None) -> None:
        self.user_ckpt_path = path
        self._loaded_from = path


def restore_process_flags(benchmark: bool | None, deterministic: bool | str | None) -> Any:
    """Sets determinism and cuDNN benchmarking for a run; returns a function that puts the former settings back."""
    import os

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        benchmark = False if benchmark is None else benchmark
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark

    def undo() -> None:
        # what was not set above is left alone: the user may have set it in the meantime
        if deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            if before[3] is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if benchmark is not None:
            torch.backends.cudnn.benchmark = before[2]

    return undo
