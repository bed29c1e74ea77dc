from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen import LightningModule

BATCHES = 4


class Scripted(LightningModule):
    """Logs "score" at each validation from a list (its last value from then on), and "count" at each training step."""

    def __init__(self, scores: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.scores = scores
        self.validations = 0
        self.steps = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("count", float(self.steps))
        self.steps += 1
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", torch.tensor(self.scores[min(self.validations, len(self.scores) - 1)]))

    def on_validation_epoch_end(self) -> None:
        self.validations += not self.trainer.sanity_checking

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = BATCHES) -> DataLoader[Tensor]:
    return DataLoader(torch.ones(batches, 2), batch_size=1)


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Any]:
    """Fits a module for three epochs of four batches with the given callbacks, everything else off."""

    def run(module: LightningModule, *callbacks: Any, validate: bool = True, **arguments: Any) -> Any:
        ckpt_path = arguments.pop("ckpt_path", None)
        chosen: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 3,
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(hasattr(callback, "best_model_path") for callback in callbacks),
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
            "limit_val_batches": 1.0 if validate else 0,
        }
        trainer = fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})
        trainer.fit(module, loader(), loader(1), ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The info lines so far."""
    caplog.set_level("INFO", logger="fulmen")
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
