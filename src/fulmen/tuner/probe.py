"""Probes: runs that try something out and leave no trace.

A probe is a trainer of its own. It has the settings and the plan of the user's trainer, and none of its callbacks,
loggers, counters and optimizers, so there is nothing of these to put back. What it shares with the user (module,
datamodule, loaders, the random state of the process) is put back when it ends, in whatever way it ends.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fulmen.assemble import profiler_of
from fulmen.callback import Callback
from fulmen.data.combined import flatten
from fulmen.datamodule import LightningDataModule
from fulmen.errors import MisconfigurationException
from fulmen.fabric.plan import Plan
from fulmen.fabric.seed import isolate_rng
from fulmen.loggers.logger import DummyLogger
from fulmen.module import LightningModule
from fulmen.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from fulmen.trainer import Trainer
from fulmen.tuner.kept import Kept
from fulmen.unpack import datamodule_and_loaders, lightning_module
from fulmen.utilities.memory import garbage_collection_cuda
from fulmen.verify import verify

__all__ = ["Bench", "Probe", "Task", "on_the_bench"]

STAGE_OF = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}

#: What a probe leaves out of a run.
_PLAIN = {
    "num_sanity_val_steps": 0,
    "val_check_interval": 1.0,
    "val_check_seconds": None,
    "val_check_every": None,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "enable_autolog_hparams": False,
}


@dataclass(frozen=True)
class Task:
    """What a probe tries: an entry point with its module and data.

    Args:
        trainer: The user's trainer. It is read only.
        fn: The entry point.
        module: The module.
        datamodule: The source of the data, if there is one.
        loaders: Loaders by stage that the user gave.
        running: Whether the trainer is in this run already, so that prepare_data, setup and configure_model are done.
    """

    trainer: Trainer
    fn: TrainerFn
    module: LightningModule
    datamodule: LightningDataModule | None
    loaders: dict[str, Any]
    running: bool

    @classmethod
    def of_call(cls, trainer: Trainer, method: str, model: Any, datamodule: Any, **loaders: Any) -> Task:
        """The task of a call such as ``trainer.fit(model, loaders)``.

        Args:
            trainer: The user's trainer.
            method: "fit", "validate", "test" or "predict".
            model: The module.
            datamodule: The source of the data, if there is one.
            **loaders: Loaders by stage, None where the datamodule or the module has them.
        """
        datamodule, loaders = datamodule_and_loaders(method, datamodule, **loaders)
        given = {stage: value for stage, value in loaders.items() if value is not None}
        return cls(trainer, TrainerFn(method), lightning_module(model, method), datamodule, given, running=False)

    @classmethod
    def of_run(cls, trainer: Trainer, module: LightningModule) -> Task:
        """The task that a trainer is at."""
        fn = TrainerFn(str(trainer.state.fn))
        return cls(trainer, fn, module, trainer.data.datamodule, trainer.data.given, running=True)

    def keep(self) -> Kept:
        """Everything that a probe shares with the user, as it is now."""
        loaders = [leaf for given in self.loaders.values() for leaf in flatten(given)]
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return Kept(self.module, self.datamodule, loaders, [*self.trainer.optimizers, *schedulers])


class Probe(Trainer):
    """A trainer with the settings of the user's, for one try.

    Args:
        task: What to run.
        *watchers: Its only callbacks.
        **settings: Settings that differ from those of the user's trainer, among them ``max_epochs`` and ``max_steps``.
    """

    is_trial = True

    def __init__(self, task: Task, *watchers: Callback, **settings: Any) -> None:
        self.task = task
        limits = {"min_epochs": 0, "min_steps": None, "max_steps": settings.pop("max_steps", -1)}
        limits["max_epochs"] = settings.pop("max_epochs", -1)
        users = {name: getattr(task.trainer, name) for name in task.trainer._settings}
        vars(self).update({**users, **_PLAIN, **settings})
        self.plan = _separate(task.trainer.plan)
        self._make_parts(limits)
        self.profiler = profiler_of(None)
        self.loggers = [DummyLogger()] if task.trainer.loggers else []
        self.callbacks = list(watchers)
        self.predict_loop.return_predictions = False

    def run(self) -> None:
        """Runs the task once."""
        task = self.task
        self._run(task.fn, STAGE_OF[task.fn], task.module, task.datamodule, task.loaders, None, None)

    def set_up(self) -> None:
        """Does what comes once before all tries: prepare_data, setup and configure_model."""
        task = self.task
        self.state = TrainerState(TrainerStatus.RUNNING, task.fn, STAGE_OF[task.fn])
        self._attach(task.module, task.datamodule, task.loaders)
        super().recompile_hooks()
        verify(self, task.module)
        self.strategy.setup_environment()
        super()._set_up_owners()

    def recompile_hooks(self) -> None:
        """As for every trainer; a try sets nothing up or down, and its failure is no exception of the run."""
        super().recompile_hooks()
        for name in ("setup", "teardown", "on_exception"):
            setattr(self.hooks, name, ())

    def _set_up_owners(self) -> None:
        """Nothing: that is done once for all tries."""

    def _call_module(self, name: str, *arguments: Any) -> Any:
        return None if name == "configure_callbacks" else super()._call_module(name, *arguments)

    def _configure_optimizers(self) -> None:
        super()._configure_optimizers()
        if self.lightning_module.automatic_optimization:
            self.strategy.lr_scheduler_configs = []

    def _fail(self, error: BaseException) -> None:
        super()._fail(error)
        if isinstance(error, KeyboardInterrupt):
            raise error  # what a Ctrl-C ends is for the user's trainer to say


def _separate(plan: Plan) -> Plan:
    """The same plan with a strategy and a precision of its own, so that the user's keep what they hold."""
    strategy, precision = copy.copy(plan.strategy), copy.deepcopy(plan.precision)
    strategy.precision_plugin = precision
    strategy.optimizers = []
    strategy.lr_scheduler_configs = []
    strategy._bound = {}
    return replace(plan, strategy=strategy, precision=precision)


class Bench:
    """Where tries are run one after the other, each from the same state.

    Args:
        task: What is tried.
        kept: The state.
    """

    def __init__(self, task: Task, kept: Kept) -> None:
        self.task = task
        self._kept = kept

    @contextmanager
    def probe(self, *watchers: Callback, **settings: Any) -> Iterator[Probe]:
        """A probe to run; what it changed is put back at the end.

        Args:
            *watchers: Its callbacks.
            **settings: As for ``Probe``.
        """
        try:
            with _silently():
                yield Probe(self.task, *watchers, **settings)
        finally:
            self._kept.restore()

    def free(self, scarce: bool = False) -> None:
        """Gives back the memory that earlier probes took on a device; that of the CPU only if it is scarce."""
        if scarce or self.task.trainer.strategy.root_device.type != "cpu":
            garbage_collection_cuda()


@contextmanager
def on_the_bench(task: Task) -> Iterator[Bench]:
    """Context for tries; afterwards everything is as it was before.

    Args:
        task: What is tried.

    Raises:
        MisconfigurationException: The user gave an iterator; what a try reads from it would be lost.
    """
    _check_readable_again(task)
    if task.trainer.strategy.root_device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else there are no generators yet that could be put back
    with isolate_rng():
        before = task.keep()
        bench = Bench(task, before)
        try:
            if task.running:
                yield bench
            else:
                with _set_up(task) as set_up:
                    yield set_up
        finally:
            before.restore()
            bench.free()


@contextmanager
def _set_up(task: Task) -> Iterator[Bench]:
    """Context between the setup and the teardown of a task that is not running yet."""
    probe = Probe(task)
    try:
        probe.set_up()
        yield Bench(task, task.keep())
        probe.hooks.call("teardown", task.fn)
    except BaseException as error:
        Trainer._fail(probe, error)
        raise


def _check_readable_again(task: Task) -> None:
    for loaders in task.loaders.values():
        for loader in flatten(loaders):
            if hasattr(loader, "__next__"):
                raise MisconfigurationException(
                    f"The tuner was given {type(loader).__name__}, an iterator: what it reads would be missing in the"
                    " training. Give a `DataLoader`, a list, or any other object that can be iterated again.",
                    subject=loader,
                )


@contextmanager
def _silently() -> Iterator[None]:
    """Context in which trainers do not report on their runs."""
    log = logging.getLogger("fulmen")
    level = log.level
    log.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)
