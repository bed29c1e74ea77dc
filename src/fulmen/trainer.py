"""Trainer: takes a module and data, and runs them.

The way of a run: an entry point (``fit``, ``validate``, ``test``, ``predict``) calls ``_run``, which prepares
everything,
runs one loop (``loops/``), and cleans up, whatever happens. All of the ``try / except / finally`` of fulmen is here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fulmen import assemble, resume, settings, snapshot
from fulmen.book import new_book
from fulmen.clock import Clock
from fulmen.compiled import keep_logging_out
from fulmen.describe import describe
from fulmen.errors import SIGTERMException
from fulmen.fabric import distributed
from fulmen.fabric.plan import resolve
from fulmen.hooks import HookTable, compile_hooks, opened
from fulmen.hparams import clean_namespace
from fulmen.hyperlog import log_hyperparameters
from fulmen.instrument import Instruments
from fulmen.loops.evaluate import EvaluationLoop
from fulmen.loops.fit import FitLoop, resolve_epochs
from fulmen.loops.predict import PredictionLoop
from fulmen.loops.sanity import sanity_check
from fulmen.module import LightningModule
from fulmen.optim import LightningOptimizer, configure, wrapped
from fulmen.owners import set_up_owners, share_versions
from fulmen.publish import Publisher
from fulmen.ranks import show_information
from fulmen.signals import Signals, leave
from fulmen.sources import DataSources
from fulmen.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from fulmen.timings import Timings
from fulmen.traceback import place, show_user_first, tell_notes
from fulmen.trigger import Every
from fulmen.unpack import datamodule_and_loaders, lightning_module
from fulmen.verify import returns_predictions, verify
from fulmen.view import restore_process_flags


class Trainer(Publisher):
    """Runs the training, evaluation and prediction of a ``LightningModule``.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda", "mps" or an ``Accelerator``.
        strategy: "auto", the name of a strategy, or a ``Strategy``.
        devices: How many devices, or which.
        num_nodes: Number of machines.
        precision: "32-true", "64-true", "16-true", "bf16-true", "16-mixed" or "bf16-mixed".
        logger: A logger, several, True for the default one, False for none.
        callbacks: A callback or several.
        fast_dev_run: Run one batch (True) or n batches of each loop, without loggers and checkpoints.
        max_epochs: Epochs at most; -1 for no limit. Default: 1000 if there is no other limit.
        min_epochs: Epochs at least.
        max_steps: Optimizer steps at most; -1 for no limit.
        min_steps: Optimizer steps at least.
        max_time: Time at most: "DD:HH:MM:SS", a timedelta, or a dict of its arguments.
        limit_train_batches: Training batches an epoch: a number (int) or a fraction (float).
        limit_val_batches: Validation batches of each loader, likewise.
        limit_test_batches: Test batches of each loader, likewise.
        limit_predict_batches: Prediction batches of each loader, likewise.
        overfit_batches: Train and validate on this many batches (int) or this fraction, unshuffled.
        val_check_interval: Validate every n training batches (int), every fraction of an epoch (float), or by a
            trigger: "500 steps", "2 h", "10_000 samples", a timedelta, or an ``Every``.
        check_val_every_n_epoch: Validate every n epochs; None counts ``val_check_interval`` over epochs.
        num_sanity_val_steps: Validation batches run before training; -1 for all.
        log_every_n_steps: How often the step metrics go to the loggers; 0 for never.
        enable_checkpointing: Whether there is a ``ModelCheckpoint`` without being asked for.
        enable_progress_bar: Whether there is a progress bar.
        enable_model_summary: Whether a summary of the module is printed before training.
        accumulate_grad_batches: Batches whose gradients are added up for one optimizer step.
        gradient_clip_val: Limit of the gradients; None or 0 clips nothing.
        gradient_clip_algorithm: "norm" (default) or "value".
        deterministic: Use deterministic algorithms (True), or warn where there is none ("warn").
        benchmark: Value of ``torch.backends.cudnn.benchmark``.
        inference_mode: Evaluate under ``torch.inference_mode`` (else ``torch.no_grad``).
        use_distributed_sampler: Whether samplers are replaced on several processes.
        profiler: "simple", "advanced", "pytorch", "xla", or a ``Profiler``; None measures nothing.
        detect_anomaly: Autograd's anomaly detection during fit.
        barebones: Turn off everything that is not the bare loop, to measure it.
        plugins: Precision, checkpoint IO or environment plugins.
        sync_batchnorm: Synchronise batch norm between processes.
        reload_dataloaders_every_n_epochs: Ask for the train and val loaders again every n epochs.
        default_root_dir: Where logs and checkpoints go by default; the working directory if not given.
        enable_autolog_hparams: Whether hyperparameters are logged at the start of a run.
        model_registry: Name under which a model registry keeps the model.
        max_duration: The limit in any unit: "10_000 steps", "2 h", "1_000_000 samples", or an ``Every``.
        log_every: ``log_every_n_steps`` in any unit, likewise.
    """

    @settings.defaults_from_environment
    def __init__(
        self,
        *,
        accelerator: Any = "auto",
        strategy: Any = "auto",
        devices: Any = "auto",
        num_nodes: int = 1,
        precision: Any | None = None,
        logger: Any | Iterable[Any] | bool | None = None,
        callbacks: list[Any] | Any | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | Every | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Any | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | Path | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        max_duration: Every | str | None = None,
        log_every: Every | str | int | None = None,
    ) -> None:
        self._set_up({name: value for name, value in locals().items() if name != "self"})

    def _set_up(self, given: dict[str, Any]) -> None:
        show_information()
        resolved = settings.read(given)
        planned = ("accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "sync_batchnorm")
        self.plan = resolve(**{name: given[name] for name in planned})
        assemble.warn_unused_gpu(self.plan.accelerator)
        limits = {name: resolved.pop(name) for name in ("max_epochs", "min_epochs", "max_steps", "min_steps")}
        assembled = ("logger", "callbacks", "max_time", "profiler", *planned)
        self._settings = [name for name in resolved if name not in assembled]
        self.__dict__.update({name: resolved[name] for name in self._settings})
        self._make_parts(limits)
        self.profiler = assemble.profiler_of(resolved["profiler"])
        self.loggers = assemble.loggers_of(resolved)
        self.callbacks = assemble.callbacks_of(resolved)

    def _make_parts(self, limits: dict[str, Any]) -> None:
        """The parts that hold the state of the runs, as they are before the first one."""
        self.state = TrainerState()
        self.book = new_book(self.barebones, self.strategy.world_size)
        self.hooks = HookTable()
        self.data = DataSources(self)
        self.signals = Signals()
        self.timings: dict[str, float] = {}
        self.instruments = Instruments(self)
        self.clock = Clock(self)
        self.should_stop = False
        self.lightning_optimizers: list[LightningOptimizer] = []
        self.user_ckpt_path = self._loaded_from = self._newest_checkpoint = None
        self.fit_loop = FitLoop(self, **limits)
        self.validate_loop = EvaluationLoop(self, "validate", own=True)
        self.test_loop = EvaluationLoop(self, "test", own=True)
        self.predict_loop = PredictionLoop(self)

    # ------------------------------------------------------------------------------------------------ entry points

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Trains a module.

        Args:
            model: The module.
            train_dataloaders: The training data: a loader, or several in a list or dict.
            val_dataloaders: The validation data, likewise.
            datamodule: The source of the data, instead of loaders.
            ckpt_path: Checkpoint to go on from: a path or URL, "last" or "best".
            weights_only: As for ``torch.load``; False unpickles anything, so only for files that you trust.
        """
        module = lightning_module(model, "fit")
        datamodule, loaders = datamodule_and_loaders(
            "fit", datamodule, train=train_dataloaders, validate=val_dataloaders
        )
        self.should_stop = False
        self._start(TrainerFn.FITTING, RunningStage.TRAINING, module, datamodule, loaders, ckpt_path, weights_only)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Runs one pass over the validation data.

        Args:
            model: The module; None for the one of the last run.
            dataloaders: The data: a loader, or several in a list.
            ckpt_path: Checkpoint whose weights are validated: a path or URL, "last" or "best".
            verbose: Whether the results are printed.
            datamodule: The source of the data, instead of loaders.
            weights_only: As for ``torch.load``.

        Returns:
            For each loader a dictionary of the metrics logged by epoch.
        """
        fn = TrainerFn.VALIDATING
        inputs = self._evaluated(fn, model, dataloaders, datamodule)
        results = self._start(fn, RunningStage.VALIDATING, *inputs, ckpt_path, weights_only, model is not None)
        return self._report(fn, results, verbose)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Runs one pass over the test data; arguments and result as for ``validate``."""
        fn = TrainerFn.TESTING
        inputs = self._evaluated(fn, model, dataloaders, datamodule)
        results = self._start(fn, RunningStage.TESTING, *inputs, ckpt_path, weights_only, model is not None)
        return self._report(fn, results, verbose)

    def _evaluated(
        self, fn: TrainerFn, model: Any, dataloaders: Any, datamodule: Any
    ) -> tuple[LightningModule, Any, dict[str, Any]]:
        module = lightning_module(model, fn.value, self.strategy.lightning_module)
        return module, *datamodule_and_loaders(fn.value, datamodule, **{fn.value: dataloaders})

    def _report(self, fn: TrainerFn, results: list[dict[str, float]], verbose: bool) -> list[dict[str, float]]:
        if verbose and results and self.is_global_zero:
            from fulmen.results import print_results

            print_results(results, fn.value)
        return results

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Runs ``predict_step`` over data.

        Args:
            model: The module; None for the one of the last run.
            dataloaders: The data: a loader, or several in a list.
            datamodule: The source of the data, instead of loaders.
            return_predictions: Whether the outputs are collected and returned; by default yes, unless the processes
                are spawned or forked, whose outputs do not come back.
            ckpt_path: Checkpoint whose weights predict: a path or URL, "last" or "best".
            weights_only: As for ``torch.load``.

        Returns:
            The outputs by batch, on the CPU; with several loaders one such list for each.
        """
        module = lightning_module(model, "predict", self.strategy.lightning_module)
        datamodule, loaders = datamodule_and_loaders("predict", datamodule, predict=dataloaders)
        self.predict_loop.return_predictions = returns_predictions(self, return_predictions)
        result: list[Any] | None = self._start(
            TrainerFn.PREDICTING,
            RunningStage.PREDICTING,
            module,
            datamodule,
            loaders,
            ckpt_path,
            weights_only,
            model is not None,
        )
        return result

    # ------------------------------------------------------------------------------------------------ a run

    @property
    def _start(self) -> Callable[..., Any]:
        """``_run``, in this process or through the launcher in several."""
        launcher = self.strategy.launcher
        return self._run if launcher is None else partial(launcher.launch, self._run, trainer=self)

    def _run(
        self,
        fn: TrainerFn,
        stage: RunningStage,
        module: LightningModule,
        datamodule: Any,
        loaders: dict[str, Any],
        ckpt_path: Any,
        weights_only: bool | None,
        model_given: bool = True,
    ) -> Any:
        """Prepares, runs the loop, cleans up; the only place where exceptions are caught."""
        self.state = TrainerState(TrainerStatus.RUNNING, fn, stage)
        undo_flags = restore_process_flags(self.benchmark, self.deterministic)
        grad_mode = torch.is_grad_enabled()
        try:
            self._attach(module, datamodule, loaders)
            checkpoint = self._prepare(ckpt_path, weights_only, model_given)
            self._ready(checkpoint, weights_only)
            del checkpoint
            with self.signals:
                self.signals.share(self.strategy.leaving, self.fit_loop.count_begun)
                if stage == RunningStage.TRAINING:
                    sanity_check(self)
                    with torch.autograd.set_detect_anomaly(self.detect_anomaly):
                        self.fit_loop.run()
                    result = None
                else:
                    with self._no_gradients():
                        result = self._evaluation_loop().run()
            self._finish()
            return result
        except KeyboardInterrupt as error:
            self._fail(self._explain(error))
            tell_notes(error, "Interrupted by Ctrl-C.")
            sys.exit(1)
        except BaseException as error:
            show_user_first(error, self)
            explained = self._explain(error)
            self._fail(explained)
            if self.signals.caused(error):
                tell_notes(error, "Ended by SIGTERM.")
                raise SIGTERMException from error
            if isinstance(error, SystemExit):
                tell_notes(error, f"Ended by {type(error).__name__}.")
            if explained is not error:
                raise explained from None
            raise
        finally:
            self.signals.restore()
            torch.set_grad_enabled(grad_mode)
            undo_flags()

    def _attach(self, module: LightningModule, datamodule: Any, loaders: dict[str, Any]) -> None:
        """Connects the module and the data to this trainer."""
        self.hooks = HookTable()
        for loop in (self.fit_loop, self.fit_loop.val_loop, self.validate_loop, self.test_loop, self.predict_loop):
            loop.drop_data()
        for loop in (self.fit_loop.val_loop, self.validate_loop, self.test_loop):
            loop.forget_seen()
        if self.state.fn == "fit":
            resolve_epochs(self)
            self.fit_loop.start_over()
            self._newest_checkpoint = None
        self.clock.start_over()
        clean_namespace(module.hparams)
        self.strategy.connect(module)
        self.strategy.place = partial(place, self)
        self.data.attach(datamodule, **loaders)
        self.book.close()
        self.book.module = module
        module.trainer = self
        keep_logging_out(module)
        if datamodule is not None:
            self._datamodule = datamodule
            datamodule.trainer = self
        assemble.merge_model_callbacks(self)
        for callback in self.callbacks:
            callback.log, callback.log_dict = module.log, module.log_dict  # type: ignore[attr-defined]

    def _prepare(self, ckpt_path: Any, weights_only: bool | None, model_given: bool) -> dict[str, Any] | None:
        """Everything up to optimizers and devices; returns the checkpoint to go on from, if there is one."""
        self.recompile_hooks()
        verify(self, self.lightning_module)
        self.strategy.setup_environment()
        share_versions(self)
        self._loaded_from = path = resume.agree(self, ckpt_path, model_given)
        self.instruments.begin_profile()
        self._set_up_owners()
        checkpoint = None
        if path is not None and not self.strategy.restore_checkpoint_after_setup:
            checkpoint = snapshot.restore(self, path, weights_only)
        self.book.forget()
        self.strategy.setup(self)
        self.book.device = self.strategy.root_device
        if self.state.fn == "fit":
            self.hooks.call("on_fit_start")
        return checkpoint

    def _set_up_owners(self) -> None:
        set_up_owners(self)

    def _ready(self, checkpoint: dict[str, Any] | None, weights_only: bool | None) -> None:
        """The last things before the loop: hyperparameters to the loggers, training state from the checkpoint."""
        log_hyperparameters(self)
        if checkpoint is None and self._loaded_from is not None:
            checkpoint = snapshot.restore(self, self._loaded_from, weights_only)
        if checkpoint is not None:
            snapshot.restore_training(self, checkpoint)
        self.recompile_hooks()
        self.lightning_module.zero_grad()

    def _finish(self) -> None:
        """Ends a run that went well."""
        for release in self._releases():
            release()
        if self.state.fn == "fit":
            self.hooks.call("on_fit_end")
        self.hooks.call("teardown", self.state.fn)
        for logger in self.loggers:
            logger.finalize("success")
        self.instruments.end_profile()
        self.book.close()
        self.state.status, self.state.stage = TrainerStatus.FINISHED, None

    def _explain(self, error: BaseException) -> BaseException:
        """The exception that ended the run, or that of another process from which it follows."""
        by_signal = self.signals.leaves or self.signals.caused(error)
        return error if by_signal else self.strategy.explain(error)

    def _fail(self, error: BaseException) -> None:
        """Ends a run that an exception has ended; what fails meanwhile is noted on it, and does not hide it."""
        self.state.status = TrainerStatus.INTERRUPTED
        ends: list[Callable[[], Any]] = [partial(call, error) for call in self.hooks.on_exception]
        ends += [partial(logger.finalize, "failed") for logger in self.loggers]
        ends += [*self._releases(), self.instruments.end_profile, partial(resume.note_newest, self, error)]
        # others may be gone, or somewhere else: nothing here waits for them, unless all have left together
        with nullcontext() if self.signals.together else distributed.alone():
            for end in ends:
                try:
                    end()
                except BaseException as second:
                    error.add_note(f"While this was handled, {type(second).__name__} was raised: {second}")
        self.book.close()
        self.state.stage = None

    def _releases(self) -> list[Callable[[], None]]:
        """What gives devices and workers back."""
        loops = (self.fit_loop, self.fit_loop.val_loop, self.validate_loop, self.test_loop, self.predict_loop)
        return [self.strategy.teardown, *(loop.close_data for loop in loops), self.book.to_cpu]

    def _no_gradients(self) -> AbstractContextManager[Any]:
        allowed = self.inference_mode and self.strategy.allows_inference_mode
        return torch.inference_mode() if allowed else torch.no_grad()

    def _evaluation_loop(self) -> Any:
        return {"validate": self.validate_loop, "test": self.test_loop, "predict": self.predict_loop}[
            str(self.state.fn)
        ]

    def _call_module(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the module outside of the loop; ``self.log`` is refused in it."""
        return opened(self.book, name, getattr(self.lightning_module, name))(*arguments)

    def _configure_optimizers(self) -> None:
        """Makes the optimizers and schedulers (called by the strategy when the module is on its device)."""
        self.strategy.optimizers, self.strategy.lr_scheduler_configs = configure(self, self.lightning_module)
        self.lightning_optimizers = wrapped(self.strategy.optimizers, self.lightning_module)

    def leave_on_signal(self) -> None:
        """Ends the run at a safe point after SIGTERM or Ctrl-C; with several processes it may be a later one."""
        leave(self)

    # ------------------------------------------------------------------------------------------------ for users

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint of the run. All processes must call it.

        Args:
            filepath: Where to.
            weights_only: Leave out optimizers, schedulers and callbacks; training cannot be resumed from it.
            storage_options: Passed on to the checkpoint IO.
        """
        if self.strategy.lightning_module is None:
            raise AttributeError(
                "`Trainer.save_checkpoint` saves a run, but no model is attached. Call it after `fit` (or validate,"
                " test)."
            )
        snapshot.check_together(self, filepath)
        # a checkpoint may be taken in the middle of a hook, in which `self.log` works again afterwards
        checkpoint = opened(self.book, "on_save_checkpoint", snapshot.dump)(self, bool(weights_only))
        self.strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        if not weights_only:
            self._newest_checkpoint = str(filepath), self.global_step
        self.strategy.barrier("Trainer.save_checkpoint")

    def recompile_hooks(self) -> None:
        """Looks again who overrides which hook. Done by itself when a run starts; call it after hooks were"
        " assigned later.
        """
        self.hooks = compile_hooks(self, self.lightning_module)
        self.fit_loop.rebind()

    def describe(self, model: LightningModule | None = None) -> str:
        """The resolved plan, and each hook in the order of the loop with who listens on it.

        Args:
            model: The module; None for the one of the last run.
        """
        return describe(self, model)

    def measure_timings(self) -> Callable[[], None]:
        """Measures from now on where the time of the run goes, into ``timings``: category -> seconds.

        Returns:
            A function that stops measuring.
        """
        return Timings(self).install()

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Context in which modules are created on the run's device and in its dtype.

        Args:
            empty_init: Leave the weights uninitialised, e.g. because a checkpoint is loaded into them.
        """
        return self.strategy.module_init_context(empty_init)
