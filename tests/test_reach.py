"""Triggers that cannot come due in a run of known length are told at its start, and no others are."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from fulmen.errors import PossibleUserWarning
from fulmen.loggers import CSVLogger
from fulmen.reach import Reach, never_due, reach_of
from fulmen.trigger import Every

BATCHES = 4


class Net(LightningModule):
    def __init__(self, automatic=True):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.automatic_optimization = automatic
        self.reach = None

    def on_train_start(self):
        self.reach = reach_of(self.trainer)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum()
        if self.automatic_optimization:
            return loss
        for _ in range(2):
            self.optimizers().step()
        return None

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.ones(BATCHES, 2)


def loader(batches=BATCHES):
    return DataLoader(torch.ones(batches, 2))


def fit(path, *callbacks, module=None, train=None, val=True, **settings):
    chosen = {"max_epochs": 2, "logger": False, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    chosen |= {"enable_model_summary": False, "default_root_dir": path, "accelerator": "cpu"}
    chosen["enable_checkpointing"] = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    trainer = Trainer(callbacks=list(callbacks), **(chosen | settings))
    module = module or Net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader() if train is None else train, loader(1) if val else None)
    told = [
        warning for warning in caught if "never comes due" in str(warning.message) or "saves" in str(warning.message)
    ]
    assert all(warning.category is PossibleUserWarning and warning.filename == __file__ for warning in told)
    return module, [str(warning.message) for warning in told]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"check_val_every_n_epoch": 3},
            ["check_val_every_n_epoch=3)` never", "2 epochs", "check_val_every_n_epoch=2`"],
        ),
        (
            {"max_steps": 3},
            ["val_check_interval=1.0)` never", "3 batches, and an epoch has 4", "interval=3`"],
        ),
        ({"max_steps": 1, "val_check_interval": 2}, ["val_check_interval=2)`", "1 batch,", "val_check_interval=1`"]),
        ({"max_steps": 1, "val_check_interval": 0.5}, ["val_check_interval=0.5)`", "val_check_interval=1`"]),
        ({"max_steps": 7, "check_val_every_n_epoch": 2}, ["n_epoch=2)`", "7 batches", "check_val_every_n_epoch=1`"]),
        (
            {"val_check_interval": 9, "check_val_every_n_epoch": None},
            ["val_check_interval=9, check_val_every_n_epoch=None)`", "8 batches", "val_check_interval=8`"],
        ),
        ({"val_check_interval": "9 batches"}, ["=Every(batches=9))`", "8 batches", "'8 batches'"]),
        (
            {"val_check_interval": "5 steps", "accumulate_grad_batches": 3},
            ["=Every(steps=5))`", "4 steps", "'4 steps'"],
        ),
        ({"max_duration": "3 batches"}, ["val_check_interval=1.0)`", "3 batches", "val_check_interval=3`"]),
        ({"check_val_every_n_epoch": 3, "val_check_interval": "2 h"}, ["check_val_every_n_epoch=3)`", "2 epochs"]),
    ],
)
def test_a_validation_that_never_comes_due(tmp_path, settings, message):
    _, told = fit(tmp_path, **settings)
    assert len(told) == 1
    assert all(part in told[0] for part in [*message, "no validation takes place", "train longer"]), told


def test_who_waits_for_a_metric_of_that_validation_is_named(tmp_path):
    stopping = EarlyStopping("val_loss", strict=False)
    _, told = fit(tmp_path, ModelCheckpoint(tmp_path, monitor="val_loss"), stopping, check_val_every_n_epoch=3)
    assert "`EarlyStopping(monitor='val_loss')` and `ModelCheckpoint(monitor='val_loss')`" in told[0]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"every_n_train_steps": 9}, {}, ["every_n_train_steps=9)`", "8 steps", "`every_n_train_steps=8`"]),
        ({"every_n_train_steps": 3}, {"accumulate_grad_batches": 4}, ["2 steps", "`every_n_train_steps=2`"]),
        ({"every_n_epochs": 3}, {}, ["ModelCheckpoint(every_n_epochs=3)`", "2 epochs", "`every_n_epochs=2`"]),
        ({"every_n_epochs": 2}, {"max_steps": 4}, ["1 epoch,", "`every_n_epochs=1`"]),
        ({"every": "9 batches"}, {}, ["every=Every(batches=9))`", "8 batches", "`every='8 batches'`"]),
        ({"every": "9 steps"}, {}, ["every_n_train_steps=9)`", "8 steps"]),
    ],
)
def test_a_checkpoint_that_is_never_due(tmp_path, arguments, settings, message):
    _, told = fit(tmp_path, ModelCheckpoint(tmp_path / "saved", **arguments), val=False, **settings)
    assert len(told) == 1
    assert all(part in told[0] for part in [*message, "it saves no checkpoint"]), told
    assert not (tmp_path / "saved").exists()


def test_a_checkpoint_that_waits_for_a_validation_that_never_comes(tmp_path):
    _, told = fit(tmp_path, ModelCheckpoint(tmp_path / "saved"), val_check_interval="9 batches")
    assert "no validation" in told[0]
    assert "save_on_train_epoch_end=True" in told[1]
    assert not (tmp_path / "saved").exists()


def test_a_log_interval_that_never_comes_due(tmp_path):
    _, told = fit(tmp_path, val=False, logger=CSVLogger(tmp_path), log_every="9 batches")
    assert len(told) == 1
    assert (
        "`Trainer(log_every=Every(batches=9))` never comes due: the run has 8 batches, so no step is logged" in told[0]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_steps": 4},
        {"check_val_every_n_epoch": 2},
        {"max_steps": 8, "check_val_every_n_epoch": 2},
        {"val_check_interval": 8, "check_val_every_n_epoch": None},
        {"val_check_interval": "1000 samples"},
        {"fast_dev_run": True},
        {"max_steps": 3, "limit_val_batches": 0},
        {"max_epochs": 1, "reload_dataloaders_every_n_epochs": 1, "max_steps": 2},
        {"train": DataLoader(Stream()), "max_steps": 2},
        {"train": DataLoader(Stream()), "val_check_interval": 1000},
        {"train": DataLoader(Stream()), "val_check_interval": 1000, "check_val_every_n_epoch": None},
        {"max_time": "00:00:10:00", "max_epochs": -1, "max_steps": 8, "val_check_interval": {"hours": 1}},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_no_alarm_where_it_can_come_due_or_nothing_is_known(tmp_path, settings):
    assert fit(tmp_path, **settings)[1] == []


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"every_n_train_steps": 8},
        {"every_n_epochs": 2},
        {"every": "1000 samples"},
        {"train_time_interval": timedelta(hours=1)},
        {"every_n_train_steps": 9, "save_top_k": 0},
        {"every_n_train_steps": 9, "save_on_exception": True},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_no_alarm_for_a_checkpoint(tmp_path, checkpoint):
    assert fit(tmp_path, ModelCheckpoint(tmp_path, **checkpoint))[1] == []


def test_no_alarm_where_the_module_steps_by_itself(tmp_path):
    """Two steps a batch: 16 in all."""
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=16)
    module, told = fit(tmp_path, saves, module=Net(automatic=False), val=False)
    assert (told, module.trainer.global_step) == ([], 16)
    assert saves.best_model_path


def test_how_far_a_run_comes(tmp_path):
    assert fit(tmp_path)[0].reach == Reach(8, 8, 2)
    assert fit(tmp_path, max_steps=5)[0].reach == Reach(5, 5, 2)
    assert fit(tmp_path, accumulate_grad_batches=3)[0].reach == Reach(4, 8, 2)
    schedule = GradientAccumulationScheduler({0: 4, 1: 2})
    assert fit(tmp_path, schedule)[0].reach == Reach(8, 8, 2)
    assert fit(tmp_path, train=DataLoader(Stream()))[0].reach == Reach(float("inf"), float("inf"), 2)
    assert fit(tmp_path, max_epochs=-1, max_steps=6)[0].reach == Reach(6, 6, 2)


def test_a_unit_without_a_bound():
    assert never_due("Trainer", "log_every", Every(samples=10), Reach(1, 1, 1), "nothing") is None
