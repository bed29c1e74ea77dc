"""Fabric's loggers: those of the Trainer, under Fabric's own argument names and folders."""

from __future__ import annotations

import csv
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fulmen.fabric.loggers
import fulmen.loggers
from fulmen.extras import available
from fulmen.fabric import Fabric
from fulmen.fabric.loggers import CSVLogger, Logger, TensorBoardLogger

needs_tensorboard = pytest.mark.skipif(not available("tensorboard"), reason="tensorboard is not installed")
LOGGERS = [CSVLogger, pytest.param(TensorBoardLogger, marks=needs_tensorboard)]


@pytest.mark.parametrize("cls", LOGGERS)
def test_folders(cls: Any, tmp_path: Path) -> None:
    logger = cls(root_dir=tmp_path, name="exp")
    assert (logger.name, logger.version, logger.group_separator) == ("exp", 0, "/")
    assert logger.root_dir == str(tmp_path)
    assert logger.log_dir == str(tmp_path / "exp" / "version_0")
    (tmp_path / "exp" / "version_4").mkdir(parents=True)
    assert cls(tmp_path, "exp").version == 5
    for nameless in (cls(tmp_path, name=None), cls(tmp_path, "")):
        assert (nameless.name, nameless.log_dir) == ("", str(tmp_path / "version_0"))
    assert cls(tmp_path, version="mine").log_dir == str(tmp_path / "lightning_logs" / "mine")


@pytest.mark.parametrize("cls", LOGGERS)
def test_they_are_the_loggers_of_the_trainer(cls: Any, tmp_path: Path) -> None:
    assert issubclass(cls, getattr(fulmen.loggers, cls.__name__))
    assert isinstance(cls(tmp_path), Logger)
    names = list(inspect.signature(cls.__init__).parameters)[:5]
    assert names[:4] == ["self", "root_dir", "name", "version"]


def test_a_loop_of_ones_own_logs(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", loggers=CSVLogger(tmp_path, prefix="run"))
    fabric.log("loss", torch.tensor(0.5), step=3)
    fabric.logger.log_hyperparams({"rate": 0.1})
    fabric.logger.save()
    folder = tmp_path / "lightning_logs" / "version_0"
    with open(folder / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"run-loss": "0.5", "step": "3"}]
    assert (folder / "hparams.yaml").read_text() == "rate: 0.1\n"


@needs_tensorboard
def test_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "exp", sub_dir="part", default_hp_metric=False, flush_secs=1)
    assert logger.sub_dir == "part"
    assert logger.log_dir == str(tmp_path / "exp" / "version_0" / "part")
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_graph(torch.nn.Linear(2, 1), torch.ones(1, 2))
    logger.finalize("success")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]
    assert events.Tags()["graph"]
    assert any(name.startswith("events.") for name in os.listdir(logger.log_dir))


def test_unknown_names() -> None:
    assert dir(fulmen.fabric.loggers) == ["CSVLogger", "Logger", "TensorBoardLogger"]
    with pytest.raises(AttributeError, match="has no attribute 'WandbLoger'"):
        fulmen.fabric.loggers.WandbLoger  # noqa: B018
