from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen


class TinyNet(fulmen.LightningModule):
    """One linear layer whose squared output is the loss, on batches of one row of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def loss(self, batch: Tensor) -> Tensor:
        return self.layer(batch).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TinyValNet(TinyNet):
    """The same, with the steps of evaluation; what they log is the mean of the batch."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val", batch.mean())

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test", batch.mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch.sum()


@pytest.fixture
def Net() -> type[TinyNet]:
    return TinyNet


@pytest.fixture
def ValNet() -> type[TinyValNet]:
    return TinyValNet


@pytest.fixture
def data() -> Callable[..., DataLoader[Tensor]]:
    """Makes a loader of so many batches; batch i is a row of two times i."""

    def make(batches: int = 4, **arguments: Any) -> DataLoader[Tensor]:
        rows = torch.arange(float(batches))[:, None].expand(-1, 2)
        return DataLoader(rows, **{"batch_size": 1, **arguments})  # type: ignore[arg-type]

    return make


@pytest.fixture
def quiet(tmp_path: Path) -> Callable[..., fulmen.Trainer]:
    """Makes a trainer of one epoch on the CPU, with everything off that is not asked for."""

    def make(**arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
        chosen = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path, **dict.fromkeys(off, False)}
        return fulmen.Trainer(**{**chosen, **arguments})

    return make


@pytest.fixture
def fit(quiet: Callable[..., fulmen.Trainer]) -> Callable[..., fulmen.Trainer]:
    """Fits a module with a quiet trainer; returns the trainer."""

    def run(module: fulmen.LightningModule, *loaders: Any, **arguments: Any) -> fulmen.Trainer:
        trainer = quiet(**arguments)
        trainer.fit(module, *loaders)
        return trainer

    return run


class Diary(fulmen.Callback):
    """Notes, in words that can be read: each batch trained on as epoch.batch, each validation, each epoch's end."""

    def __init__(self) -> None:
        self.words: list[str] = []

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.words.append(f"{trainer.current_epoch}.{batch_idx}")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.words.append("sanity" if trainer.sanity_checking else "val")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.words.append("end")


@pytest.fixture
def diary() -> Diary:
    return Diary()
