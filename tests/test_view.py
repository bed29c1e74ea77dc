"""What can be read on a Trainer, before, in and after a run."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar
from fulmen.data import CombinedLoader
from fulmen.fabric.precision import Precision
from fulmen.loggers import CSVLogger
from fulmen.loggers.logger import DummyLogger
from fulmen.states import RunningStage, TrainerFn, TrainerStatus
from fulmen.strategies import SingleDeviceStrategy


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(first(batch)).mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", self.layer(first(batch)).mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.layer(first(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def first(batch: Any) -> Tensor:
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return batch


def loader(batches: int = 4) -> DataLoader[Tensor]:
    return DataLoader(torch.ones(batches, 2))  # type: ignore[arg-type]


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Makes a Trainer that is quiet and short unless told otherwise."""

    def trainer(**arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        chosen = {**dict.fromkeys(off, False), "accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path}
        return fulmen.Trainer(**{**chosen, **arguments})

    return trainer


# ---------------------------------------------------------------------------------------------------- stages

STAGES = {
    "training": RunningStage.TRAINING,
    "validating": RunningStage.VALIDATING,
    "testing": RunningStage.TESTING,
    "predicting": RunningStage.PREDICTING,
    "sanity_checking": RunningStage.SANITY_CHECKING,
}


@pytest.mark.parametrize("name", STAGES)
def test_the_switches_of_stages(make: Any, name: str) -> None:
    trainer = make()
    assert trainer.state.stage is None
    assert not trainer.evaluating
    setattr(trainer, name, True)
    assert trainer.state.stage is STAGES[name]
    assert [other for other in STAGES if getattr(trainer, other)] == [name]
    assert trainer.evaluating is (name in ("validating", "testing", "sanity_checking"))
    for other in STAGES:
        if other != name:
            setattr(trainer, other, False)
    assert trainer.state.stage is STAGES[name]
    setattr(trainer, name, False)
    assert trainer.state.stage is None


def test_evaluating_is_only_read(make: Any) -> None:
    with pytest.raises(AttributeError, match="evaluating"):
        make().evaluating = True


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
def test_whether_a_run_was_interrupted(make: Any) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise ZeroDivisionError

    trainer = make(limit_val_batches=0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Fails(), loader())
    assert trainer.interrupted
    assert trainer.state.status is TrainerStatus.INTERRUPTED
    trainer.fit(Net(), loader())
    assert not trainer.interrupted
    assert trainer.state.finished


# ---------------------------------------------------------------------------------------------------- a new Trainer

NEW = {
    "precision": "32-true",
    "scaler": None,
    "global_rank": 0,
    "local_rank": 0,
    "node_rank": 0,
    "world_size": 1,
    "num_nodes": 1,
    "num_devices": 1,
    "device_ids": [0],
    "is_global_zero": True,
    "distributed_sampler_kwargs": None,
    "lightning_module": None,
    "model": None,
    "optimizers": [],
    "lr_scheduler_configs": [],
    "checkpoint_callback": None,
    "checkpoint_callbacks": [],
    "early_stopping_callback": None,
    "early_stopping_callbacks": [],
    "progress_bar_callback": None,
    "ckpt_path": None,
    "received_sigterm": False,
    "global_step": 0,
    "current_epoch": 0,
    "min_epochs": None,
    "max_steps": -1,
    "min_steps": None,
    "is_last_batch": False,
    "train_dataloader": None,
    "val_dataloaders": None,
    "test_dataloaders": None,
    "predict_dataloaders": None,
    "num_training_batches": math.inf,
    "num_val_batches": [],
    "num_sanity_val_batches": [],
    "num_test_batches": [],
    "num_predict_batches": [],
    "logger": None,
    "loggers": [],
    "callback_metrics": {},
    "logged_metrics": {},
    "progress_bar_metrics": {},
    "fast_dev_run": False,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "limit_predict_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 2,
    "log_every_n_steps": 50,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "reload_dataloaders_every_n_epochs": 0,
    "datamodule": None,
    "should_stop": False,
    "barebones": False,
    "enable_autolog_hparams": True,
}


@pytest.mark.parametrize("name", NEW)
def test_a_new_trainer(make: Any, name: str) -> None:
    assert getattr(make(), name) == NEW[name]


def test_the_parts_of_a_new_trainer(make: Any, tmp_path: Path) -> None:
    trainer = make(max_epochs=3, max_steps=7, min_epochs=1, min_steps=2)
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs, trainer.min_steps) == (3, 7, 1, 2)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert trainer.accelerator is trainer.strategy.accelerator
    assert type(trainer.precision_plugin) is Precision
    assert trainer.default_root_dir == trainer.log_dir == str(tmp_path)
    state = trainer.state
    assert (state.status, state.fn, state.stage) == (TrainerStatus.INITIALIZING, None, None)


def test_the_devices(make: Any) -> None:
    trainer = make()
    devices = tuple(torch.device("cuda", index) for index in (1, 3))
    trainer.plan = dataclasses.replace(trainer.plan, devices=devices)
    assert (trainer.device_ids, trainer.num_devices) == ([1, 3], 2)
    trainer.plan = dataclasses.replace(trainer.plan, devices=(torch.device("cpu"),) * 2)
    assert (trainer.device_ids, trainer.num_devices) == ([0, 1], 2)


def test_the_callbacks(make: Any, tmp_path: Path) -> None:
    class Own(Checkpoint): ...

    stops = [EarlyStopping("loss"), EarlyStopping("other")]
    saves, bar = [Own(), ModelCheckpoint(tmp_path)], RichProgressBar()
    trainer = make(callbacks=[saves[0], *stops, bar, saves[1]], enable_checkpointing=True, enable_progress_bar=True)
    assert trainer.early_stopping_callbacks == stops
    assert trainer.early_stopping_callback is stops[0]
    assert trainer.checkpoint_callbacks == saves
    assert trainer.checkpoint_callback is saves[0]
    assert trainer.progress_bar_callback is bar


# ---------------------------------------------------------------------------------------------------- loggers


def test_loggers_can_be_set(make: Any) -> None:
    one, two = DummyLogger(), DummyLogger()
    trainer = make()
    trainer.loggers = [one, two]
    assert trainer.loggers == [one, two]
    assert trainer.logger is one
    trainer.logger = two
    assert trainer.loggers == [two]
    for nothing in (None, False):
        trainer.logger = two
        trainer.logger = nothing
        assert (trainer.logger, trainer.loggers) == (None, [])
    trainer.loggers = [one]
    trainer.loggers = None
    assert trainer.loggers == []


def test_where_logs_go(make: Any, tmp_path: Path) -> None:
    class Elsewhere(DummyLogger):
        save_dir = "elsewhere"

    ours = CSVLogger(tmp_path / "csv", version="x")
    assert make(logger=[ours, Elsewhere()]).log_dir == ours.log_dir
    assert make(logger=[Elsewhere(), ours]).log_dir == "elsewhere"
    assert make(logger=False).log_dir == str(tmp_path)


def test_the_root_is_a_plain_path(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make(default_root_dir="~/runs/../logs").default_root_dir == str(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    assert make(default_root_dir=None).default_root_dir == os.getcwd()


# ---------------------------------------------------------------------------------------------------- a run


def test_after_a_fit(make: Any) -> None:
    module, trainer = Net(), make(limit_train_batches=3, num_sanity_val_steps=1)
    trainer.fit(module, loader(), loader(2))
    assert trainer.lightning_module is trainer.model is module
    assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.SGD]
    assert trainer.enable_validation
    assert trainer.is_last_batch
    assert (trainer.global_step, trainer.current_epoch, trainer.min_epochs) == (3, 1, 0)
    assert trainer.num_training_batches == trainer.val_check_batch == 3
    assert (trainer.num_val_batches, trainer.num_sanity_val_batches) == ([2], [1])
    assert (trainer.state.fn, trainer.state.stage) == (TrainerFn.FITTING, None)
    trainer.optimizers = [torch.optim.Adam(module.parameters())]
    assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.Adam]


@pytest.mark.filterwarnings("ignore:There is a")
@pytest.mark.parametrize("without", ["data", "step", "limit"])
def test_when_there_is_no_validation(make: Any, without: str) -> None:
    class Trains(fulmen.LightningModule):
        training_step, configure_optimizers = Net.training_step, Net.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

    seen: list[bool] = []

    class Looks(fulmen.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen.append(trainer.enable_validation)

    trainer = make(limit_val_batches=0 if without == "limit" else 1.0, callbacks=[Looks()])
    module = Trains() if without == "step" else Net()
    trainer.fit(module, loader(), None if without == "data" else loader())
    assert seen == [False]


COLLECTIONS: dict[str, Any] = {
    "one": loader,
    "list of one": lambda: [loader()],
    "list": lambda: [loader(), loader(2)],
    "tuple": lambda: (loader(), loader(2)),
    "dictionary": lambda: {"a": loader(), "b": loader(2)},
    "nested": lambda: {"a": loader(), "b": [loader(2)]},
}


def shape(loaders: Any) -> Any:
    """A collection with the lengths of the loaders."""
    if isinstance(loaders, dict):
        return {name: shape(child) for name, child in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return type(loaders)(map(shape, loaders))
    assert isinstance(loaders, DataLoader)
    return len(loaders)


@pytest.mark.parametrize("combined", [False, True], ids=["plain", "combined"])
@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize(("fn", "kind"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_the_loaders_of_an_evaluation(make: Any, fn: str, kind: str, name: str, combined: bool) -> None:
    loaders, trainer = COLLECTIONS[name](), make()
    given = CombinedLoader(loaders, "sequential") if combined else loaders
    assert getattr(trainer, f"{kind}_dataloaders") is None
    getattr(trainer, fn)(Net(), given, **({} if fn == "predict" else {"verbose": False}))
    assert shape(getattr(trainer, f"{kind}_dataloaders")) == shape(loaders)
    assert getattr(trainer, f"num_{kind}_batches") == ([4] if "one" in name else [4, 2])


@pytest.mark.parametrize("mode", [None, "min_size"])
@pytest.mark.parametrize("name", COLLECTIONS)
def test_the_loaders_of_a_fit(make: Any, name: str, mode: Any) -> None:
    loaders, trainer = COLLECTIONS[name](), make(num_sanity_val_steps=0)
    trainer.fit(Net(), CombinedLoader(loaders, mode) if mode else loaders, [loader(3)])
    assert shape(trainer.train_dataloader) == shape(loaders)
    assert shape(trainer.val_dataloaders) == [3]
    assert trainer.num_training_batches == (2 if mode and "one" not in name else 4)


def test_each_call_has_its_own_loaders(make: Any) -> None:
    trainer = make(num_sanity_val_steps=0)
    trainer.validate(Net(), loader(2), verbose=False)
    assert (shape(trainer.val_dataloaders), trainer.num_val_batches) == (2, [2])
    trainer.fit(Net(), loader(), [loader(3), loader(1)])
    assert (shape(trainer.val_dataloaders), trainer.num_val_batches) == ([3, 1], [3, 1])
    trainer.validate(Net(), loader(2), verbose=False)
    assert (shape(trainer.val_dataloaders), trainer.num_val_batches) == (2, [2])
    assert trainer.train_dataloader is None


# ---------------------------------------------------------------------------------------------------- how many steps


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3}, 12),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 0}, 4),
    ],
)
def test_the_number_of_steps(make: Any, arguments: dict[str, Any], steps: float) -> None:
    assert estimate(make(**arguments), loader()) == steps


@pytest.mark.parametrize(("max_steps", "steps"), [(7, 7), (-1, -1)])
def test_the_number_of_steps_of_an_endless_loader(make: Any, max_steps: int, steps: int) -> None:
    assert estimate(make(max_epochs=2, max_steps=max_steps, limit_train_batches=1.0), endless()) == steps


def test_to_estimate_the_steps_the_loader_is_loaded(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fulmen"):
        estimate(make(), loader())
    assert caplog.text.count("The train dataloader is loaded now") == 1


def estimate(trainer: Any, loaders: Any) -> float:
    """What `configure_optimizers` is told, asked twice; the fit ends there."""
    answers: list[float] = []

    class Asks(Net):
        def configure_optimizers(self) -> Any:
            answers.extend(self.trainer.estimated_stepping_batches for _ in range(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer.fit(Asks(), loaders, loader(1))
    assert answers[0] == answers[1]
    return answers[0]


def endless() -> Any:
    return DataLoader(Stream(), batch_size=None)


class Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter([torch.ones(1, 2)] * 3)
