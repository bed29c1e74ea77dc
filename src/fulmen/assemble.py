"""The batteries of a run: which callbacks and loggers a Trainer has, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.extras import available
from fulmen.ranks import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer import Trainer


def warn_unused_gpu(accelerator: Any) -> None:
    """Says so if there is a GPU and the run will not use it."""
    if accelerator.name() == "cpu" and torch.cuda.is_available():
        rank_zero_warn(
            "There is a GPU, but the run is on the CPU. To use the GPU: `Trainer(accelerator='gpu')`.",
            category=PossibleUserWarning,
        )


def callbacks_of(settings: dict[str, Any]) -> list[Callback]:
    """The user's callbacks, and those that the Trainer's switches add."""
    from fulmen.callbacks import ProgressBar
    from fulmen.callbacks.checkpoint import Checkpoint

    given = settings["callbacks"]
    several = isinstance(given, Iterable) and not isinstance(given, str)
    callbacks = list(given) if several else [] if given is None else [given]
    _check(callbacks, "`Trainer(callbacks=...)`")
    _add_checkpoint(callbacks, settings["enable_checkpointing"], Checkpoint)
    _add_progress_bar(callbacks, settings["enable_progress_bar"], ProgressBar)
    _add_summary(callbacks, settings["enable_model_summary"])
    _add_timer(callbacks, settings["max_time"])
    callbacks += from_entry_points("lightning.pytorch.callbacks_factory")
    return in_order(callbacks)


def _check(callbacks: list[Any], where: str) -> None:
    for callback in callbacks:
        if isinstance(callback, type):
            raise MisconfigurationException(
                f"{where} was given the class {callback.__name__}, expected an object: write `{callback.__name__}()`.",
                subject=callback,
            )
        if not _is_callback(callback):
            raise MisconfigurationException(
                f"{where} was given {callback!r} of {type(callback).__name__}, expected a `Callback`, or several in a"
                " list: for instance `[EarlyStopping('val_loss')]`.",
                subject=callback,
            )


def _is_callback(candidate: Any) -> bool:
    """Whether it is a callback, or has at least a hook of one."""
    from fulmen.hooks import HOOKS

    return isinstance(candidate, Callback) or any(hasattr(candidate, hook.name) for hook in HOOKS if "C" in hook.who)


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Tuners first, then the plain ones as given, checkpoints last; two with one state key are refused."""
    ordered = sorted(callbacks, key=lambda callback: getattr(callback, "order", 0))
    seen: dict[str, Callback] = {}
    for callback in ordered:
        key = getattr(callback, "state_key", type(callback).__qualname__)
        other = seen.setdefault(key, callback)
        if other is not callback and (_has_state(callback) or _has_state(other)):
            raise RuntimeError(
                f"Two callbacks have the state key {key!r}, so one's state would overwrite the other's in a checkpoint:"
                f" {type(other).__name__} twice. Override the property `state_key` to tell them apart, e.g."
                f' `return f"{{type(self).__name__}}-{{self.name}}"`.'
            )
    return ordered


def _has_state(callback: Callback) -> bool:
    from fulmen.hooks import overrides

    return overrides(callback, "state_dict", Callback)


def _add_checkpoint(callbacks: list[Callback], enabled: bool, kind: type[Callback]) -> None:
    there = any(isinstance(callback, kind) for callback in callbacks)
    if there and not enabled:
        raise MisconfigurationException(
            "`Trainer(enable_checkpointing=False)`, but a checkpoint callback is among `callbacks`. Remove one of"
            " the two."
        )
    if enabled and not there:
        from fulmen.callbacks import ModelCheckpoint

        callbacks.append(ModelCheckpoint())


def _add_summary(callbacks: list[Callback], enabled: bool) -> None:
    from fulmen.callbacks import ModelSummary, RichModelSummary

    if enabled and not any(isinstance(callback, ModelSummary) for callback in callbacks):
        callbacks.append(RichModelSummary())


def _add_progress_bar(callbacks: list[Callback], enabled: bool, kind: type[Callback]) -> None:
    bars = [callback for callback in callbacks if isinstance(callback, kind)]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"`Trainer(callbacks=...)` has {len(bars)} progress bars: {', '.join(type(bar).__name__ for bar in bars)}."
            " Keep one."
        )
    if bars and not enabled:
        raise MisconfigurationException(
            f"`Trainer(enable_progress_bar=False)`, but {type(bars[0]).__name__} is among `callbacks`. Remove one"
            " of the two."
        )
    if enabled and not bars:
        from fulmen.callbacks import RichProgressBar

        callbacks.append(RichProgressBar())


def _add_timer(callbacks: list[Callback], max_time: Any) -> None:
    if max_time is None:
        return
    from fulmen.callbacks import Timer

    if any(isinstance(callback, Timer) for callback in callbacks):
        rank_zero_info("`Trainer(max_time=...)` is ignored: a Timer is among the callbacks.")
    else:
        callbacks.append(Timer(duration=max_time, interval="step"))


def profiler_of(given: Any) -> Any:
    """The user's profiler, by object or name; one that records nothing if there is none."""
    from fulmen import profilers

    if isinstance(given, profilers.Profiler):
        return given
    if given is None:
        return profilers.PassThroughProfiler()
    names = {
        "simple": "SimpleProfiler",
        "advanced": "AdvancedProfiler",
        "pytorch": "PyTorchProfiler",
        "xla": "XLAProfiler",
    }
    if not isinstance(given, str) or given.lower() not in names:
        raise MisconfigurationException(
            f"`Trainer(profiler={given!r})`: expected one of {list(names)}, or a `fulmen.profilers.Profiler`.",
            subject=given,
        )
    return getattr(profilers, names[given.lower()])()


def from_entry_points(group: str) -> list[Callback]:
    """Callbacks that installed packages add by an entry point: a function that returns one or several."""
    from importlib.metadata import entry_points

    found: list[Callback] = []
    for point in entry_points(group=group):
        made = point.load()()
        found += list(made) if isinstance(made, Iterable) else [made]
    return found


def loggers_of(settings: dict[str, Any]) -> list[Any]:
    """The user's loggers, or the default one."""
    given = settings["logger"]
    if not given:
        return []
    if settings["fast_dev_run"]:
        from fulmen.loggers.logger import DummyLogger

        return [DummyLogger()]
    if given is not True:
        loggers = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        _check_loggers(loggers)
        return loggers
    from fulmen.loggers import CSVLogger, TensorBoardLogger

    if available("tensorboard") or available("tensorboardX"):
        return [TensorBoardLogger(settings["default_root_dir"])]
    rank_zero_info(
        "Metrics go to `metrics.csv` (CSVLogger). For TensorBoard instead: `pip install tensorboard`, or pass"
        " `logger=...`."
    )
    return [CSVLogger(settings["default_root_dir"])]


def _check_loggers(loggers: list[Any]) -> None:
    for logger in loggers:
        if isinstance(logger, type) or not hasattr(logger, "log_metrics"):
            raise MisconfigurationException(
                f"`Trainer(logger=...)` was given {logger!r} of {type(logger).__name__}, expected a `Logger`, or a list"
                " of them: for instance `CSVLogger('logs')`.",
                subject=logger,
            )


def merge_model_callbacks(trainer: Trainer) -> None:
    """Puts the callbacks that the module configures in the place of the trainer's of the same kind."""
    configured = trainer._call_module("configure_callbacks")
    own = list(configured) if isinstance(configured, Iterable) else [configured] if configured else []
    if not own:
        return
    _check(own, f"`{type(trainer.lightning_module).__name__}.configure_callbacks`")
    replaced = [
        callback
        for callback in trainer.callbacks
        if type(callback) is not Callback and any(issubclass(type(mine), type(callback)) for mine in own)
    ]
    if replaced:
        names = ", ".join(type(callback).__name__ for callback in replaced)
        rank_zero_info(f"The module's `configure_callbacks` replaces these callbacks of the Trainer: {names}.")
    trainer.callbacks = in_order([callback for callback in trainer.callbacks if callback not in replaced] + own)
