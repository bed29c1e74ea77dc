from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import ThroughputMonitor
from fulmen.loggers import Logger


class Records(Logger):
    """A logger that keeps what the monitor logs."""

    name = "records"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def of(self, stage: str) -> list[tuple[int, dict[str, float]]]:
        return [(step, metrics) for step, metrics in self.logged if f"{stage}/time" in metrics]


class Net(fulmen.LightningModule):
    flops_per_batch = 10

    def __init__(self, validation_seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.validation_seconds = validation_seconds

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(self.validation_seconds)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = 8) -> DataLoader[Tensor]:
    return DataLoader(torch.randn(2 * batches, 4), batch_size=2)


def monitor(**arguments: Any) -> ThroughputMonitor:
    return ThroughputMonitor(len, length_fn=lambda batch: batch.numel(), **{"window_size": 3, **arguments})


@pytest.fixture
def run(tmp_path):
    def make(callback: Any, logger: Any, **arguments: Any) -> fulmen.Trainer:
        chosen: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 2, "num_sanity_val_steps": 1}
        return fulmen.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=callback,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **{**chosen, **arguments},
        )

    return make


def test_training_is_logged_when_loggers_are_due(run):
    logger = Records()
    run(monitor(available_flops=1000), logger).fit(Net(), loader(), loader(2))
    rows = logger.of("train")
    assert [step for step, _ in rows] == [1, 3, 5, 7, 9, 11, 13, 15]
    first, second = rows[0][1], rows[1][1]
    assert set(first) == {"train/time", "train/batches", "train/samples", "train/lengths", "epoch"}
    assert {"train/batches": 2, "train/samples": 4, "train/lengths": 16, "epoch": 0}.items() <= first.items()
    assert set(second) - set(first) == {
        f"train/device/{rate}"
        for rate in ("batches_per_sec", "samples_per_sec", "items_per_sec", "flops_per_sec", "mfu")
    }
    assert second["train/device/samples_per_sec"] == pytest.approx(2 * second["train/device/batches_per_sec"])
    assert second["train/device/flops_per_sec"] == pytest.approx(10 * second["train/device/batches_per_sec"])
    assert second["train/device/mfu"] == pytest.approx(second["train/device/flops_per_sec"] / 1000)


def test_evaluation_is_logged_by_its_own_batches(run):
    logger = Records()
    trainer = run(monitor(separator="|"), logger)
    trainer.fit(Net(), loader(), loader(4))
    trainer.test(Net(), loader(2), verbose=False)
    trainer.predict(Net(), loader(2))
    validations = [(step, metrics) for step, metrics in logger.logged if "validate|time" in metrics]
    assert [(step, metrics["validate|batches"]) for step, metrics in validations] == [(2, 2), (4, 4), (6, 2), (8, 4)]
    stages = {name.split("|")[0] for _, metrics in logger.logged for name in metrics} - {"epoch"}
    assert stages == {"train", "validate", "test", "predict"}


def test_accumulated_batches_count_and_steps_are_logged(run):
    logger = Records()
    run(monitor(), logger, accumulate_grad_batches=2, max_epochs=1).fit(Net(), loader(), loader(1))
    assert [(step, metrics["train/batches"]) for step, metrics in logger.of("train")] == [(1, 4), (3, 8)]


def test_the_time_of_validations_is_not_that_of_training(run):
    logger = Records()
    arguments = {"val_check_interval": 2, "max_epochs": 1, "num_sanity_val_steps": 0}
    start = time.perf_counter()
    run(monitor(), logger, **arguments).fit(Net(validation_seconds=0.05), loader(), loader(1))
    elapsed = time.perf_counter() - start
    assert elapsed - logger.of("train")[-1][1]["train/time"] >= 3 * 0.05


def test_a_module_that_does_not_know_its_operations(run):
    class Unknown(Net):
        flops_per_batch = None

    logger = Records()
    with pytest.warns(UserWarning, match="Unknown has no `flops_per_batch`") as warned:
        run(monitor(), logger).fit(Unknown(), loader(), loader(1))
    assert len([each for each in warned if "flops_per_batch" in str(each.message)]) == 1
    assert not [name for _, metrics in logger.logged for name in metrics if "flops" in name]


def test_without_a_logger_there_is_nothing_to_do(run):
    calls = []
    run(ThroughputMonitor(lambda batch: calls.append(batch)), False).fit(Net(), loader(), loader(1))
    assert calls == []
