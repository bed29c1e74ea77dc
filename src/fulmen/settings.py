"""The Trainer's arguments: defaults, checks, and what they imply for each other. No device is touched here."""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from fulmen.arguments import refuse_unknown
from fulmen.errors import MisconfigurationException
from fulmen.extras import need
from fulmen.paths import is_url, local
from fulmen.ranks import rank_zero_info, rank_zero_warn
from fulmen.trigger import Every

#: What `Trainer(barebones=True)` turns off, and the values that ask for it all the same.
_BAREBONES = (
    "enable_checkpointing",
    "logger",
    "enable_progress_bar",
    "log_every_n_steps",
    "enable_model_summary",
    "num_sanity_val_steps",
    "fast_dev_run",
    "detect_anomaly",
    "profiler",
)


def defaults_from_environment(init: Callable[..., None]) -> Callable[..., None]:
    """Lets every argument of ``__init__`` come from the environment: PL_<CLASS>_<ARGUMENT>, e.g. PL_TRAINER_DEVICES.

    Explicit arguments win. Positional ones are taken in the order of the signature. One that does not exist is a
    ``TypeError`` that says what to type instead.
    """
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        refuse_unknown(names, args, kwargs)
        kwargs.update(zip(names, args, strict=False))
        for name in names:
            value = os.environ.get(f"PL_{type(self).__name__.upper()}_{name.upper()}")
            if value and name not in kwargs:
                kwargs[name] = _literal(value)
        init(self, **kwargs)

    return wrapped


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read(given: dict[str, Any]) -> dict[str, Any]:
    """Resolves the arguments that say how long, how often and how much.

    Args:
        given: Arguments of the Trainer by name.

    Returns:
        The attributes of the trainer, by name.
    """
    settings = dict(given)
    if settings["barebones"]:
        _strip(settings)
    _read_duration(settings)
    _read_log_interval(settings)
    _fill_defaults(settings)
    _check_counts(settings)
    for stage in ("train", "val", "test", "predict"):
        name = f"limit_{stage}_batches"
        settings[name] = limit(name, settings[name])
    settings["overfit_batches"] = limit("overfit_batches", settings["overfit_batches"])
    settings["fast_dev_run"] = _fast_dev_run(settings)
    if settings["overfit_batches"]:
        settings["limit_train_batches"] = settings["limit_val_batches"] = settings["overfit_batches"]
    _read_validation_interval(settings, is_default=given["val_check_interval"] is None)
    _check_clipping(settings)
    _check_determinism(settings)
    settings["default_root_dir"] = _root(settings["default_root_dir"])
    return settings


def _strip(settings: dict[str, Any]) -> None:
    asked = [name for name in _BAREBONES if settings[name] not in (None, False, 0)]
    if asked:
        raise ValueError(
            f"`Trainer(barebones=True)` measures the bare loop, but {', '.join(f'{n}={settings[n]!r}' for n in asked)}"
            " asks for more. Leave them out, or leave out `barebones`."
        )
    settings.update(enable_checkpointing=False, logger=False, enable_progress_bar=False, enable_model_summary=False)
    settings.update(num_sanity_val_steps=0, log_every_n_steps=0)
    rank_zero_info(
        "`Trainer(barebones=True)`: checkpoints, loggers, progress bar, model summary, sanity check and `self.log`"
        " are off."
    )


def _fill_defaults(settings: dict[str, Any]) -> None:
    defaults = {
        "logger": True,
        "enable_checkpointing": True,
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "num_sanity_val_steps": 2,
        "log_every_n_steps": 50,
        "limit_train_batches": 1.0,
        "limit_val_batches": 1.0,
        "limit_test_batches": 1.0,
        "limit_predict_batches": 1.0,
        "val_check_interval": 1.0,
    }
    for name, default in defaults.items():
        if settings[name] is None:
            settings[name] = default
    if settings["num_sanity_val_steps"] == -1:
        settings["num_sanity_val_steps"] = float("inf")


def _check_counts(settings: dict[str, Any]) -> None:
    if settings["max_steps"] is None:
        raise TypeError("`Trainer(max_steps=None)`: expected a number of optimizer steps, or -1 for no limit.")
    for name in ("max_epochs", "max_steps", "min_epochs", "min_steps"):
        if settings[name] is not None:
            settings[name] = _limit_of_run(name, settings[name])
    _at_least(settings, "accumulate_grad_batches", 1)
    _at_least(settings, "reload_dataloaders_every_n_epochs", 0)
    _at_least(settings, "log_every_n_steps", 0)
    if settings["check_val_every_n_epoch"] is not None:
        _at_least(settings, "check_val_every_n_epoch", 1)


def _limit_of_run(name: str, value: Any) -> int:
    """A number of epochs or steps; -1, or infinity, for no limit."""
    if value == float("inf"):
        return -1
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
    if not whole or value < -1:
        raise MisconfigurationException(
            f"`Trainer({name}={value!r})`: expected a whole number of at least 0, or -1 for no limit."
        )
    return int(value)


def _at_least(settings: dict[str, Any], name: str, minimum: int) -> None:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        hint = " For a schedule, use `GradientAccumulationScheduler`." if isinstance(value, dict) else ""
        raise MisconfigurationException(
            f"`Trainer({name}={value!r})`: expected a whole number of at least {minimum}.{hint}"
        )


def limit(name: str, value: Any) -> int | float:
    """A number of batches: an int as it is, a float in [0, 1] as a fraction, a larger whole float as an int."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    if valid and isinstance(value, float) and value > 1 and value.is_integer():
        value = int(value)
    if not valid or (isinstance(value, float) and value > 1):
        raise MisconfigurationException(
            f"`Trainer({name}={value!r})`: expected a number of batches (an int of at least 0) or a fraction (a float"
            " from 0.0 to 1.0)."
        )
    if value == 1 and name != "overfit_batches":
        _tell_one(name, value)
    return value  # type: ignore[no-any-return]


def _tell_one(name: str, value: int | float) -> None:
    if isinstance(value, int):
        rank_zero_info(f"`Trainer({name}=1)` means one batch; for all of them write 1.0.")


def _fast_dev_run(settings: dict[str, Any]) -> int | bool:
    value = settings["fast_dev_run"] or False
    if not isinstance(value, int) or value < 0:
        raise MisconfigurationException(
            f"`Trainer(fast_dev_run={value!r})`: expected True (one batch of each loop), False, or a number of batches."
        )
    batches = int(value)
    if not batches:
        return False
    for stage in ("train", "val", "test", "predict"):
        settings[f"limit_{stage}_batches"] = batches
    settings.update(max_steps=batches, max_epochs=1, num_sanity_val_steps=0, val_check_interval=1.0)
    settings.update(check_val_every_n_epoch=1)
    rank_zero_info(
        f"`Trainer(fast_dev_run={value!r})`: {batches} batch(es) of each loop; loggers and checkpoints are off."
    )
    return value


def _read_validation_interval(settings: dict[str, Any], is_default: bool) -> None:
    """``val_check_interval`` is a number of batches, a fraction of the epoch, or a time."""
    value = settings["val_check_interval"]
    settings["val_check_seconds"] = settings["val_check_every"] = None
    settings["val_check_batch"] = float("inf")
    if isinstance(value, (str, dict, timedelta, Every)):
        _read_validation_trigger(settings, Every.parse(value))
        return
    if isinstance(value, float) and settings["check_val_every_n_epoch"] is None and not is_default:
        raise MisconfigurationException(
            f"`Trainer(val_check_interval={value}, check_val_every_n_epoch=None)` counts batches over epochs, so it"
            " cannot be a fraction of one. Give a number of batches (an int) or a time; without either,"
            " validation is after as many batches as an epoch has."
        )
    if isinstance(value, float) and value > 1 and value.is_integer():
        settings["val_check_interval"] = value = int(value)
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if not valid or (isinstance(value, float) and value > 1):
        raise MisconfigurationException(
            f"`Trainer(val_check_interval={value!r})`: expected a number of training batches (an int of at least"
            " 1), a fraction"
            ' of the epoch (a float up to 1.0), or a time ("DD:HH:MM:SS", a timedelta, or a dict of its arguments).'
        )


def _read_validation_trigger(settings: dict[str, Any], every: Every) -> None:
    """A validation by a trigger counts over epochs; by epochs it is at their end."""
    if every.seconds is not None:
        settings["val_check_seconds"] = every.seconds
    elif every.epochs is not None:
        settings.update(val_check_interval=1.0, check_val_every_n_epoch=every.epochs)
    else:
        settings.update(val_check_every=every, check_val_every_n_epoch=None)


def _read_duration(settings: dict[str, Any]) -> None:
    """``max_duration`` is a limit in any unit: one of the plain limits, or a count the loop keeps."""
    settings["max_count"] = None
    if (given := settings.pop("max_duration")) is None:
        return
    every = Every.parse(given)
    name = {"epochs": "max_epochs", "steps": "max_steps", "seconds": "max_time"}.get(every.unit)
    if name is None:
        settings["max_count"] = every
        if settings["max_epochs"] is None:
            settings["max_epochs"] = -1
    elif settings[name] in (None, -1):
        settings[name] = timedelta(seconds=every.interval) if every.seconds is not None else int(every.interval)
    else:
        raise MisconfigurationException(
            f"`Trainer(max_duration={given!r}, {name}={settings[name]!r})` limits the same thing twice. Keep one."
        )


def _read_log_interval(settings: dict[str, Any]) -> None:
    """``log_every`` is ``log_every_n_steps`` in any unit."""
    given = settings["log_every"]
    if given is None:
        return
    if settings["log_every_n_steps"] is not None:
        raise MisconfigurationException(
            f"`Trainer(log_every={given!r}, log_every_n_steps={settings['log_every_n_steps']!r})` says the same thing"
            " twice. Keep one of them."
        )
    every = Every(steps=given) if isinstance(given, int) else Every.parse(given)
    settings["log_every"] = None if every.steps is not None else every
    settings["log_every_n_steps"] = every.steps or 0


def _check_clipping(settings: dict[str, Any]) -> None:
    value, algorithm = settings["gradient_clip_val"], settings["gradient_clip_algorithm"]
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"`Trainer(gradient_clip_val={value!r})`: expected a number or None.")
    if algorithm is not None and str(getattr(algorithm, "value", algorithm)).lower() not in ("norm", "value"):
        raise MisconfigurationException(
            f"`Trainer(gradient_clip_algorithm={algorithm!r})`: expected 'norm' or 'value'."
        )
    if algorithm is not None:
        settings["gradient_clip_algorithm"] = str(getattr(algorithm, "value", algorithm)).lower()


def _check_determinism(settings: dict[str, Any]) -> None:
    deterministic = settings["deterministic"]
    if deterministic not in (True, False, None, "warn"):
        raise MisconfigurationException(f"`Trainer(deterministic={deterministic!r})`: expected True, False or 'warn'.")
    if settings["benchmark"] and settings["deterministic"]:
        rank_zero_warn(
            f"`Trainer(deterministic={settings['deterministic']!r}, benchmark=True)`: what cuDNN finds fastest differs"
            " from run to run, so results may, too. Leave `benchmark` out."
        )


def _root(value: Any) -> str:
    root = local(value) if value is not None else os.getcwd()
    if is_url(root):
        need("fsspec")  # here, where the argument is, rather than when the first file is written
        return root
    return os.path.normpath(Path(root).expanduser())
