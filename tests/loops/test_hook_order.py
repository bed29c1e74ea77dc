"""The order of every hook, held against a record of the reference (`hooks_lightning.json`, lightning 2.6.6, one CPU).

An event is who was called (C callback, M module, D datamodule, S strategy, L logger) and what, with the epoch and the
step that were read inside. Each run is recorded twice: with everything overridden, which takes the way of the closure,
and without the optimisation hooks, which takes the plain one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.loggers import Logger
from fulmen.strategies import SingleDeviceStrategy

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("capsys")]

RECORD = json.loads((Path(__file__).parent / "hooks_lightning.json").read_text())

CALLBACK_HOOKS = sorted(
    name
    for name in vars(fulmen.Callback)
    if name.startswith("on_") or name in ("setup", "teardown", "state_dict", "load_state_dict")
)
OPTIMISATION_HOOKS = {"optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping"}
MODULE_HOOKS = sorted(
    {name for name in dir(fulmen.LightningModule) if name.startswith("on_") and name != "on_gpu"}
    | OPTIMISATION_HOOKS
    | {f"{stage}_dataloader" for stage in ("train", "val", "test", "predict")}
    | {f"{stage}_step" for stage in ("training", "validation", "test", "predict")}
    | {"setup", "teardown", "prepare_data", "configure_callbacks", "configure_optimizers", "configure_model"}
    | {"lr_scheduler_step", "transfer_batch_to_device", "zero_grad"}
)
STRATEGY_HOOKS = (
    "setup_environment setup setup_optimizers teardown training_step validation_step test_step predict_step"
    " on_train_start on_train_end on_validation_start on_validation_end on_test_start on_test_end on_predict_start"
    " on_predict_end on_train_batch_start backward pre_backward post_backward optimizer_step on_exception"
    " save_checkpoint load_checkpoint load_model_state_dict load_optimizer_state_dict remove_checkpoint"
    " process_dataloader batch_to_device connect"
)
DATA_HOOKS = (
    "prepare_data setup teardown train_dataloader val_dataloader test_dataloader predict_dataloader state_dict"
    " load_state_dict on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer on_exception"
)


class Tape:
    """What was called, with the counters seen at that point."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.trainer: fulmen.Trainer | None = None

    def note(self, tag: str) -> None:
        if self.trainer is not None:
            self.events.append(f"{tag} ep={self.trainer.current_epoch} gs={self.trainer.global_step}")

    def recording(self, cls: type, prefix: str, names: list[str]) -> Any:
        """A subclass of `cls` that notes each call of the given methods."""
        methods = {name: method for name in names if callable(method := getattr(cls, name, None))}
        return type(
            f"Recorded{cls.__name__}", (cls,), {n: self._noting(f"{prefix}.{n}", m) for n, m in methods.items()}
        )

    def _noting(self, tag: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self.note(tag)
            return method(*args, **kwargs)

        return noting


class TapeLogger(Logger):
    name, version, save_dir = "n", 0, None

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.tape.note(f"L.log_metrics {sorted(metrics)} step={step}")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.tape.note(f"L.log_hyperparams {sorted(params)}")

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self.tape.note("L.log_graph")

    def finalize(self, status: str) -> None:
        self.tape.note(f"L.finalize {status}")

    def after_save_checkpoint(self, callback: Any) -> None:
        self.tape.note("L.after_save_checkpoint")


def data(size: int) -> DataLoader[Any]:
    return DataLoader(torch.randn(size, 4, generator=torch.Generator().manual_seed(0)), batch_size=1)  # type: ignore[arg-type]


class Base(fulmen.LightningModule):
    scheduling: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def loss(self, batch: Tensor) -> Tensor:
        return self(batch).pow(2).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        if self.scheduling is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.scheduling}}

    def train_dataloader(self) -> Any:
        return data(3)

    def val_dataloader(self) -> Any:
        return data(2)

    def test_dataloader(self) -> Any:
        return data(2)

    def predict_dataloader(self) -> Any:
        return data(2)


def scheduled(**scheduling: Any) -> type[Base]:
    return type("Scheduled", (Base,), {"scheduling": scheduling})


class Plateau(Base):
    settings: ClassVar[dict[str, Any]] = {"monitor": "val_loss"}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.settings}}


class PlateauByStep(Plateau):
    settings: ClassVar[dict[str, Any]] = {"monitor": "train_loss", "interval": "step"}


class Manual(Base):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.layer.parameters(), lr=0.1) for _ in range(2)]


class StopsAtBatch1(Base):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx == 1:
            self.trainer.should_stop = True
        return super().training_step(batch, batch_idx)


class SkipsFromBatch1(Base):
    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None


class NoneAtBatch1(Base):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class TwoLoaders(Base):
    def val_dataloader(self) -> Any:
        return [data(2), data(1)]

    test_dataloader = predict_dataloader = val_dataloader

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch)


class Raises(Base):
    error: type[BaseException] = ValueError

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise self.error
        return super().training_step(batch, batch_idx)


class Interrupts(Raises):
    error = KeyboardInterrupt


class LogsAtEpochEnd(Base):
    def on_train_epoch_end(self) -> None:
        self.log("ep", float(self.current_epoch))


class Data(fulmen.LightningDataModule):
    def prepare_data(self) -> None: ...

    def setup(self, stage: str) -> None: ...

    def train_dataloader(self) -> Any:
        return data(2)

    def val_dataloader(self) -> Any:
        return data(1)

    test_dataloader = predict_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        return {"k": 1}


@dataclass
class Run:
    """What is run: the module, the entry point, and what differs from the quiet trainer of one epoch."""

    module: type[Base] = Base
    call: str = "fit"
    arguments: dict[str, Any] = field(default_factory=dict)
    with_data: bool = False
    from_checkpoint: bool = False
    callbacks: Callable[[Tape], list[Any]] | None = None


def plain(tape: Tape) -> Any:
    return tape.recording(fulmen.Callback, "C", CALLBACK_HOOKS)()


def checkpointing(tape: Tape) -> list[Any]:
    hooks = [name for name in vars(ModelCheckpoint) if name.startswith("on_")] + ["setup", "teardown"]
    return [plain(tape), tape.recording(ModelCheckpoint, "CK", hooks)(save_last=True)]


def stopping(tape: Tape) -> list[Any]:
    early = tape.recording(EarlyStopping, "ES", ["on_train_epoch_end", "on_validation_end"])
    return [early("ep", patience=1), plain(tape)]


def fit(module: type[Base] = Base, **arguments: Any) -> Run:
    return Run(module, arguments=arguments)


RUNS = {
    "fit_plain": fit(),
    "fit_sanity": fit(num_sanity_val_steps=2),
    "fit_two_epochs": fit(max_epochs=2),
    "val_check_interval_int": fit(val_check_interval=1),
    "val_check_interval_float": fit(val_check_interval=0.34),
    "check_val_every_n_epoch_2": fit(max_epochs=3, check_val_every_n_epoch=2),
    "check_val_none": fit(max_epochs=2, check_val_every_n_epoch=None, val_check_interval=2),
    "accumulate_2": fit(accumulate_grad_batches=2),
    "clip": fit(gradient_clip_val=1.0),
    "limit_0_val": fit(limit_val_batches=0),
    "limit_train_2_val_1": fit(limit_train_batches=2, limit_val_batches=1),
    "overfit_1": fit(overfit_batches=1),
    "fast_dev_run": fit(fast_dev_run=True),
    "max_steps_2": fit(max_steps=2, max_epochs=-1),
    "max_epochs_0": fit(max_epochs=0),
    "max_steps_0": fit(max_steps=0, max_epochs=-1),
    "sched_epoch": fit(scheduled(interval="epoch"), max_epochs=2),
    "sched_step": fit(scheduled(interval="step"), accumulate_grad_batches=2),
    "sched_step_freq2": fit(scheduled(interval="step", frequency=2)),
    "sched_plateau": fit(Plateau, max_epochs=2),
    "sched_plateau_step": fit(PlateauByStep),
    "manual_two_optimizers": fit(Manual),
    "should_stop": fit(StopsAtBatch1, max_epochs=3),
    "should_stop_min_epochs": fit(StopsAtBatch1, max_epochs=3, min_epochs=2),
    "should_stop_min_steps": fit(StopsAtBatch1, max_epochs=3, min_steps=5),
    "batch_start_minus_1": fit(SkipsFromBatch1, max_epochs=2),
    "none_loss": fit(NoneAtBatch1),
    "two_val_loaders": fit(TwoLoaders),
    **{call: Run(call=call) for call in ("validate", "test", "predict")},
    **{f"{call}_two": Run(TwoLoaders, call) for call in ("validate", "test", "predict")},
    "fit_datamodule": Run(with_data=True),
    "validate_datamodule": Run(call="validate", with_data=True),
    "exception": Run(Raises, with_data=True),
    "keyboard_interrupt": Run(Interrupts),
    "checkpointing": Run(arguments={"enable_checkpointing": True, "max_epochs": 2}, callbacks=checkpointing),
    "early_stopping_train_epoch_end": Run(LogsAtEpochEnd, arguments={"max_epochs": 5}, callbacks=stopping),
    "resume": Run(from_checkpoint=True, arguments={"max_epochs": 2}),
    "validate_ckpt": Run(call="validate", from_checkpoint=True),
}
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}


def record(run: Run, folder: Path, everything: bool) -> dict[str, Any]:
    """What happened in a run; `everything` overrides the optimisation hooks and the strategy as well."""
    tape = Tape()
    module = tape.recording(run.module, "M", [h for h in MODULE_HOOKS if everything or h not in OPTIMISATION_HOOKS])()
    strategy = tape.recording(SingleDeviceStrategy, "S", STRATEGY_HOOKS.split()) if everything else SingleDeviceStrategy
    sources: dict[str, Any] = {"datamodule": tape.recording(Data, "D", DATA_HOOKS.split())()} if run.with_data else {}
    if run.from_checkpoint:
        first = fulmen.Trainer(**QUIET, logger=False, default_root_dir=folder)
        first.fit(Base())
        first.save_checkpoint(folder / "a.ckpt")
        sources["ckpt_path"] = folder / "a.ckpt"
    callbacks = run.callbacks(tape) if run.callbacks else [plain(tape)]
    surroundings = {"strategy": strategy(device="cpu"), "logger": TapeLogger(tape), "default_root_dir": folder}
    tape.trainer = trainer = fulmen.Trainer(**{**QUIET, **surroundings, "callbacks": callbacks, **run.arguments})
    error, result = None, None
    try:
        result = getattr(trainer, run.call)(module, **sources)
    except (ValueError, SystemExit) as raised:
        error = type(raised).__name__
    return {"events": list(tape.events), "error": error, **what_is_left(trainer), **shape_of(run.call, result)}


def what_is_left(trainer: fulmen.Trainer) -> dict[str, Any]:
    return {
        "final_epoch": trainer.current_epoch,
        "final_global_step": trainer.global_step,
        "total_batch_idx": trainer.fit_loop.total_batch_idx,
        "batch_idx": trainer.fit_loop.batch_idx,
        **{name: sorted(getattr(trainer, name)) for name in METRICS},
    }


METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def shape_of(call: str, result: Any) -> dict[str, Any]:
    if call in ("validate", "test"):
        return {"out_keys": [sorted(metrics) for metrics in result]}
    if call == "predict":
        return {"out_shape": [len(output) if isinstance(output, list) else "T" for output in result]}
    return {}


def expected(name: str) -> dict[str, Any]:
    """The reference's record of a run; the events are written as numbers, after each change of the counters."""
    run = dict(RECORD["runs"][name])
    events, epoch, step = [], "", ""
    for item in run["events"]:
        if isinstance(item, str):
            epoch, step = item.split("/")
        else:
            events.append(f"{RECORD['tags'][item]} ep={epoch} gs={step}")
    run["events"] = events
    return run


# A batch without a loss logs nothing; the reference repeats to the loggers what the batch before had logged.
STALE = {"none_loss": "L.log_metrics ['epoch', 'train_loss'] step=1 ep=0 gs=2"}


@pytest.mark.parametrize("name", RUNS)
def test_order_is_the_one_of_the_reference(name: str, tmp_path: Path) -> None:
    reference = expected(name)
    if name in STALE:
        reference["events"].remove(STALE[name])
    assert record(RUNS[name], tmp_path, everything=True) == reference


@pytest.mark.parametrize("name", RUNS)
def test_plain_step_keeps_the_order(name: str, tmp_path: Path) -> None:
    reference = expected(name)
    hidden = {f"M.{hook}" for hook in OPTIMISATION_HOOKS}
    if name in STALE:
        reference["events"].remove(STALE[name])
    kept = [e for e in reference["events"] if not e.startswith("S.") and e.split()[0] not in hidden]
    assert record(RUNS[name], tmp_path, everything=False) == {**reference, "events": kept}


def test_every_recorded_run_is_held() -> None:
    assert set(RUNS) == set(RECORD["runs"])
