from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fulmen
from fulmen.accelerators import CPUAccelerator, get_cpu_stats
from fulmen.callbacks import DeviceStatsMonitor, LearningRateMonitor
from fulmen.errors import MisconfigurationException
from fulmen.loggers import Logger

CPU_STATS = {"cpu_vm_percent": 4.0, "cpu_percent": 50.0, "cpu_swap_percent": 0.0}


class Notes(Logger):
    """Remembers what is logged."""

    name = "notes"
    version = 0

    def __init__(self, separator: str = "/") -> None:
        super().__init__()
        self.separator = separator
        self.seen: list[tuple[dict[str, Any], int | None]] = []

    @property
    def group_separator(self) -> str:
        return self.separator

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(".on_" in name for name in metrics):
            self.seen.append((metrics, step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    @property
    def when(self) -> list[tuple[str, int | None]]:
        return [(next(iter(metrics)).split(".on_")[1].split("/")[0], step) for metrics, step in self.seen]


@pytest.fixture(autouse=True)
def psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is always equally busy."""
    parts = {
        "virtual_memory": lambda: SimpleNamespace(percent=4.0),
        "cpu_percent": lambda: 50.0,
        "swap_memory": lambda: SimpleNamespace(percent=0.0),
    }
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(**parts))


class Gauged(CPUAccelerator):
    """A CPU with stats of its own."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {"heat": 1.0, "device": str(device)}


def test_stats_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_cpu_stats() == CPUAccelerator().get_device_stats("cpu") == CPU_STATS
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[stats\]"'):
        get_cpu_stats()


@pytest.mark.parametrize("cpu_stats", [None, True])
def test_before_and_after_each_batch_when_the_step_is_logged(fit, scripted, cpu_stats: bool | None) -> None:
    logger = Notes()
    fit(scripted(), DeviceStatsMonitor(cpu_stats), logger=logger, log_every_n_steps=2, max_epochs=1)
    assert logger.when == [(f"train_batch_{end}", step) for step in (1, 3) for end in ("start", "end")]
    assert logger.seen[0][0] == {f"DeviceStatsMonitor.on_train_batch_start/{name}": v for name, v in CPU_STATS.items()}


@pytest.mark.parametrize(("settings", "due"), [({}, [0, 1, 2, 3]), ({"log_every_n_steps": 3}, [2])], ids=str)
def test_evaluation_counts_its_own_batches(fit, scripted, settings, due) -> None:
    class Tested(scripted):
        def test_step(self, batch, batch_idx):
            pass

    logger, monitor = Notes(), DeviceStatsMonitor(filter_keys={"cpu_percent"})
    trainer = fit(Tested(), monitor, logger=logger, max_epochs=1, **settings)
    logger.seen.clear()
    trainer.test(Tested(), torch.ones(4, 1, 2), verbose=False)
    assert logger.when == [(f"test_batch_{end}", 4) for _ in due for end in ("start", "end")]


@pytest.mark.parametrize(("every", "steps"), [("2 batches", [1, 3]), ("4 samples", [3]), ("1 epoch", [3])])
def test_steps_may_be_logged_by_another_unit(fit, scripted, every, steps) -> None:
    logger, rates = Notes(), LearningRateMonitor("step")
    arguments = {"log_every": every, "log_every_n_steps": None, "max_epochs": 1, "validate": False}
    fit(scripted(), DeviceStatsMonitor(filter_keys={"cpu_percent"}), rates, logger=logger, **arguments)
    assert logger.when == [(f"train_batch_{end}", step) for step in steps for end in ("start", "end")]
    assert len(rates.lrs["lr-SGD"]) == len(steps)


def test_each_logger_has_its_separator_and_each_class_its_name(fit, scripted) -> None:
    class Own(DeviceStatsMonitor):
        pass

    loggers = [Notes(), Notes("-")]
    fit(scripted(), Own(filter_keys={"cpu_percent"}), logger=loggers, max_epochs=1, limit_train_batches=1)
    prefix = f"{Own.__qualname__}.on_train_batch_start"
    assert [logger.seen[0][0] for logger in loggers] == [
        {f"{prefix}/cpu_percent": 50.0},
        {f"{prefix}-cpu_percent": 50.0},
    ]


@pytest.mark.parametrize("keys", [["heat"], ("heat", "cold"), {"heat": 1}])
def test_only_what_was_asked_for(fit, scripted, keys: Any) -> None:
    logger = Notes()
    fit(scripted(), DeviceStatsMonitor(filter_keys=keys), logger=logger, max_epochs=1, accelerator=Gauged())
    assert all([name.split("/")[1] for name in metrics] == ["heat"] for metrics, _ in logger.seen)
    assert logger.seen


def test_nothing_was_asked_for(fit, scripted) -> None:
    logger = Notes()
    fit(scripted(), DeviceStatsMonitor(filter_keys=[]), logger=logger, max_epochs=1)
    assert logger.seen == []


@pytest.mark.parametrize("accelerator", ["cpu", Gauged()], ids=["plain", "own"])
def test_the_cpu_can_be_left_out(fit, scripted, accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    logger = Notes()
    trainer = fit(scripted(), DeviceStatsMonitor(False), logger=logger, max_epochs=1, accelerator=accelerator)
    assert logger.seen == []
    assert trainer.hooks.on_train_batch_start == ()


@pytest.mark.parametrize("cpu_stats", [None, True])
def test_without_psutil_training_does_not_begin(fit, scripted, cpu_stats: Any, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    module = scripted()
    with pytest.raises(ModuleNotFoundError, match="psutil"):
        fit(module, DeviceStatsMonitor(cpu_stats), logger=Notes())
    assert module.steps == 0


def test_fit_needs_a_logger(fit, scripted) -> None:
    with pytest.raises(MisconfigurationException, match="needs a logger"):
        fit(scripted(), DeviceStatsMonitor(), logger=False)


@pytest.mark.parametrize("logged", [True, False])
def test_validation_runs_of_their_own(scripted, logged: bool) -> None:
    logger = Notes()
    trainer = fulmen.Trainer(
        accelerator="cpu", callbacks=DeviceStatsMonitor(), logger=logger if logged else False, log_every_n_steps=1,
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(scripted(), torch.ones(1, 1, 2), verbose=False)
    expected = [("validation_batch_start", 0), ("validation_batch_end", 0)] if logged else []
    assert logger.when == expected


def test_it_costs_nothing_where_no_step_is_logged(fit, scripted) -> None:
    trainer = fit(scripted(), DeviceStatsMonitor(), logger=Notes(), log_every_n_steps=0, max_epochs=1)
    assert trainer.hooks.on_train_batch_start == trainer.hooks.on_validation_batch_end == ()


@pytest.mark.gpu
@pytest.mark.parametrize("cpu_stats", [None, True])
def test_on_a_gpu(fit, scripted, cpu_stats: bool | None) -> None:
    logger = Notes()
    fit(scripted(), DeviceStatsMonitor(cpu_stats), logger=logger, max_epochs=1, accelerator="cuda", devices=1)
    first = logger.seen[0][0]
    assert first["DeviceStatsMonitor.on_train_batch_start/allocated_bytes.all.current"] > 0
    assert ("DeviceStatsMonitor.on_train_batch_start/cpu_percent" in first) is bool(cpu_stats)
