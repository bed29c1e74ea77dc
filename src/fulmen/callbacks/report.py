"""Writes a report of the run, one HTML file, when it ends."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fulmen.callback import Callback
from fulmen.checkpoint.store import writer
from fulmen.errors import SIGTERMException
from fulmen.loggers.logger import Logger
from fulmen.paths import is_url, join, local
from fulmen.ranks import rank_zero_warn
from fulmen.report import Checkpoint, Curve, ReportData, render
from fulmen.summary import ModelSummary
from fulmen.tree import to_scalars

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["Report"]

_SETTINGS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "log_every_n_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "limit_train_batches",
    "limit_val_batches",
)


class Report(Callback):
    """Writes `report.html` when fit or test ends, well or not: one file with everything in it, to look at or send.

    It shows the final metrics, curves of all metrics and learning rates, where the time went, the configuration,
    hyperparameters, the model, the checkpoints with their scores, and versions. A test after fit adds to its page.

    A run that is resumed goes on with the curves and times that are in its checkpoint.

    With a logger, the curves have the points that the logger gets; without one, a point per epoch and validation.
    Nothing is written with `fast_dev_run`.

    Args:
        path: The file to write; `report.html` in the folder of the first logger, or in `default_root_dir`, if None.
        title: Headline; the name of the model's class if None.

    Example::

        Trainer(callbacks=Report(title="Baseline, larger batches")).fit(model)
    """

    # Last of all, so that checkpoints written in the same hook are in the report.
    order: ClassVar[int] = 2
    after_module: ClassVar[frozenset[str]] = frozenset({"on_train_epoch_end", "on_validation_end", "on_test_end"})

    def __init__(self, path: str | os.PathLike[str] | None = None, title: str | None = None) -> None:
        self._given_path = self._path = None if path is None else _place(path)
        self._title = title
        self._trainer: Trainer | None = None
        self._recorder: _Recorder | None = None
        self._earlier: dict[str, Any] = {}

    def listens(self, hook: str, trainer: Trainer) -> bool:
        """Not in a trial run."""
        return not trainer.fast_dev_run

    @property
    def path(self) -> Path | str | None:
        """The file that is written, or its URL; None before it is known."""
        return self._path

    @property
    def state_key(self) -> str:
        """Tells instances apart by the file they write."""
        return self._generate_state_key(path=self._given_path and str(self._given_path))

    def state_dict(self) -> dict[str, Any]:
        """Curves and times up to now."""
        if self._trainer is None or self._recorder is None:
            return {}
        return {"curves": self._recorder.state(), **self._times(self._trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with earlier curves and times; a checkpoint that is only tested leaves those of this run."""
        if self._trainer is None or self._recorder is None or self._trainer.state.fn != "fit":
            return
        self._recorder.continue_from(state_dict["curves"])
        self._earlier = state_dict

    # ---------------------------------------------------------------------------------------------- the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins to record. A report goes on over fit and test of one trainer."""
        if stage not in ("fit", "test"):
            return
        # On all ranks: reading `log_dir` is a collective operation.
        folder = trainer.log_dir or trainer.default_root_dir
        if self._trainer is not trainer or self._recorder is None:
            self._path = self._given_path or _place(join(folder, "report.html"))
            self._trainer = trainer
            self._recorder = _Recorder(trainer)
            self._earlier = {}
            model, now = type(pl_module).__name__, datetime.now()
            self._data = ReportData(self._title or model, model, started=f"{now.day} {now:%B %Y, %H:%M}")
        self._begin = time.monotonic()
        if stage == "fit":
            self._stop_timings = trainer.measure_timings()
        if trainer.loggers:
            trainer.loggers = [*trainer.loggers, self._recorder]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the summary, on all ranks, because a sharded model runs its example on all."""
        try:
            self._data.summary = str(ModelSummary(pl_module))
        except Exception as error:  # an example input that `forward` refuses is no reason to end a run
            rank_zero_warn(f"The report will be without a model summary: {error}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the first learning rates."""
        self._note_learning_rates(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes learning rates, and metrics if no logger does."""
        self._note_learning_rates(trainer)
        self._note_metrics(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes metrics if no logger does."""
        if not trainer.sanity_checking:
            self._note_metrics(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes metrics if no logger does."""
        self._note_metrics(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the report."""
        if stage in ("fit", "test"):
            self._end(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the report of a run that ended early."""
        if self._recorder is None or trainer.state.fn not in ("fit", "test"):
            return
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        self._data.status = "interrupted" if stopped else "failed"
        self._data.error = None if stopped else f"{type(exception).__name__}: {exception}"[:2000]
        self._end(trainer, pl_module, str(trainer.state.fn))

    # ---------------------------------------------------------------------------------------------- recording

    def _note_metrics(self, trainer: Trainer) -> None:
        recorder = self._recorder
        if recorder is not None and recorder not in trainer.loggers:
            recorder.note(to_scalars(trainer.logged_metrics), trainer.global_step)

    def _note_learning_rates(self, trainer: Trainer) -> None:
        if self._recorder is None:
            return
        step = max(trainer.global_step - 1, 0)
        for index, optimizer in enumerate(trainer.optimizers):
            number = f"-{index}" if len(trainer.optimizers) > 1 else ""
            for place, group in enumerate(optimizer.param_groups):
                part = f"/group {place}" if len(optimizer.param_groups) > 1 else ""
                self._recorder.note_learning_rate(f"{type(optimizer).__name__}{number}{part}", step, float(group["lr"]))

    # ---------------------------------------------------------------------------------------------- writing

    def _end(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._recorder is None:
            return
        trainer.loggers = [logger for logger in trainer.loggers if logger is not self._recorder]
        if stage == "fit":
            self._stop_timings()
        if not trainer.is_global_zero or self._path is None:
            return
        try:
            self._collect(trainer, pl_module, stage)
            write_atomically(self._path, render(self._data))
        except Exception as error:  # the run's results must not be lost with the page that shows them
            rank_zero_warn(f"The report {str(self._path)!r} could not be written: {type(error).__name__}: {error}")

    def _collect(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data, recorder = self._data, self._recorder
        assert recorder is not None
        if stage == "fit" or not data.steps:
            times = self._times(trainer)
            data.duration, data.timings = times["duration"], times["timings"]
        data.epochs, data.steps = trainer.current_epoch, trainer.global_step
        data.metrics.update(to_scalars(trainer.logged_metrics))
        data.curves = list(recorder.curves.values())
        data.learning_rates = list((recorder.monitored_rates or recorder.rates).values())
        data.configuration = configuration_of(trainer)
        data.hyperparameters = hyperparameters_of(pl_module, getattr(trainer, "datamodule", None))
        data.monitor, data.checkpoints = checkpoints_of(trainer)
        data.versions = versions()

    def _times(self, trainer: Trainer) -> dict[str, Any]:
        """Duration and timings, those before a resumption included."""
        earlier = self._earlier.get("timings", {})
        return {
            "duration": self._earlier.get("duration", 0.0) + time.monotonic() - self._begin,
            "timings": {name: seconds + earlier.get(name, 0.0) for name, seconds in trainer.timings.items()},
        }


class _Recorder(Logger):
    """Keeps in memory what loggers are given."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._trainer = trainer
        self.curves: dict[str, Curve] = {}
        self.rates: dict[str, Curve] = {}
        self.monitored_rates: dict[str, Curve] = {}

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        # What is logged for a single batch of evaluation comes without an epoch; its x is not a step of training.
        if "epoch" in metrics or not self._trainer.evaluating:
            self.note(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are read from the module."""

    def note(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Append a point to each metric's curve."""
        for name, value in metrics.items():
            if name != "epoch" and isinstance(value, (int, float)):
                curves = self.monitored_rates if name.startswith("lr-") else self.curves
                _append(curves.setdefault(name, Curve(name)), step, value)

    def state(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """The points of all curves."""
        return {
            kind: {name: (list(curve.x), list(curve.y)) for name, curve in getattr(self, kind).items()}
            for kind in ("curves", "rates", "monitored_rates")
        }

    def continue_from(self, state: dict[str, dict[str, tuple[list[float], list[float]]]]) -> None:
        """Take over points that `state` gave."""
        for kind, curves in state.items():
            setattr(self, kind, {name: Curve(name, list(x), list(y)) for name, (x, y) in curves.items()})

    def note_learning_rate(self, name: str, step: int, value: float) -> None:
        """Append a point to a learning rate's curve."""
        _append(self.rates.setdefault(name, Curve(name)), step, value)


def _append(curve: Curve, step: int | None, value: float) -> None:
    x = float(step if step is not None else len(curve.x))
    if curve.x and curve.x[-1] == x:
        curve.y[-1] = float(value)
    else:
        curve.x.append(x)
        curve.y.append(float(value))


# -------------------------------------------------------------------------------------------------- what is collected


def configuration_of(trainer: Trainer) -> dict[str, Any]:
    """What ran: devices, strategy, precision, and the settings that shape training."""
    plan = (line.partition(" ") for line in trainer.plan.describe().splitlines())
    facts: dict[str, Any] = {name: value.strip() for name, _, value in plan}
    return facts | {name: value for name in _SETTINGS if (value := getattr(trainer, name)) not in (None, -1)}


def hyperparameters_of(*owners: Any) -> dict[str, Any]:
    """What the module and the datamodule saved with `save_hyperparameters`."""
    found: dict[str, Any] = {}
    for owner in owners:
        found |= {str(name): value for name, value in dict(getattr(owner, "hparams", None) or {}).items()}
    found.pop("_class_path", None)
    return found


def checkpoints_of(trainer: Trainer) -> tuple[str | None, list[Checkpoint]]:
    """The monitored metric and the checkpoints, the best first."""
    monitor = None
    scores: dict[str, float | None] = {}
    best = set()
    for callback in trainer.checkpoint_callbacks:
        monitor = monitor or getattr(callback, "monitor", None)
        ranked = getattr(callback, "best_k_models", {})
        scores |= {path: float(score) for path, score in ranked.items()}
        for path in (getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", "")):
            if path:
                scores.setdefault(path, None)
        best.add(getattr(callback, "best_model_path", "") or None)
    found = [Checkpoint(path, score, best=path in best) for path, score in scores.items()]
    return monitor, sorted(found, key=lambda checkpoint: not checkpoint.best)


def versions() -> dict[str, str]:
    """Versions of what the run depends on."""
    import fulmen

    found = {"fulmen": fulmen.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
        found["CUDA"] = str(torch.version.cuda)
    return found | {"platform": platform.platform()}


def _place(path: str | os.PathLike[str]) -> Path | str:
    return os.fspath(path) if is_url(path) else Path(local(os.fspath(path))).expanduser()


def write_atomically(path: Path | str, text: str) -> None:
    """Write a file such that a reader sees the old one or the new one, never a part."""
    if isinstance(path, str):
        with writer(path) as stream:
            stream.write(text.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
