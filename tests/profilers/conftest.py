from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen


class Net(fulmen.LightningModule):
    """A small model with every kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", self.layer(batch).mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.layer(batch)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = 2) -> DataLoader[Tensor]:
    return DataLoader(torch.ones(batches, 2), batch_size=1)


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def batches() -> Callable[[int], DataLoader[Tensor]]:
    return loader


@pytest.fixture
def trainer_with(tmp_path: Path) -> Callable[..., fulmen.Trainer]:
    """A trainer with a profiler and everything else off."""

    def make(profiler: Any, **arguments: Any) -> fulmen.Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return fulmen.Trainer(profiler=profiler, **{**quiet, **arguments})

    return make


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The info lines so far."""
    caplog.set_level("INFO", logger="fulmen")
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
