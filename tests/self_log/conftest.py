from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen.loggers.logger import Logger


class PlainNet(fulmen.LightningModule):
    """One linear layer; logs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class PlainValNet(PlainNet):
    """The same, with the steps of evaluation."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch)


class RecordingLogger(Logger):
    """Notes down what it is asked to do: (what, with which arguments)."""

    def __init__(self, name: str = "recorder", into: list[Any] | None = None) -> None:
        super().__init__()
        self._name = name
        self.calls: list[tuple[Any, ...]] = [] if into is None else into

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((self._name, "log_metrics", dict(metrics), step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append((self._name, "log_hyperparams", params))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        self.calls.append((self._name, "log_graph", type(model).__name__))

    def save(self) -> None:
        self.calls.append((self._name, "save"))

    def finalize(self, status: str) -> None:
        self.calls.append((self._name, "finalize", status))

    @property
    def rows(self) -> list[tuple[dict[str, float], int]]:
        """What came to ``log_metrics``."""
        return [(call[2], call[3]) for call in self.calls if call[1] == "log_metrics"]

    def having(self, key: str) -> list[tuple[float, int]]:
        """(value, x) of one key."""
        return [(metrics[key], step) for metrics, step in self.rows if key in metrics]


@pytest.fixture
def Net() -> type[PlainNet]:
    return PlainNet


@pytest.fixture
def ValNet() -> type[PlainValNet]:
    return PlainValNet


@pytest.fixture
def Recorder() -> type[RecordingLogger]:
    return RecordingLogger


@pytest.fixture
def recorder() -> RecordingLogger:
    return RecordingLogger()


@pytest.fixture
def data() -> Callable[..., DataLoader[Tensor]]:
    """Makes a loader of so many batches."""

    def make(batches: int = 3, batch_size: int = 1) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(batches * batch_size, 2), batch_size=batch_size)  # type: ignore[arg-type]

    return make


@pytest.fixture
def quiet(tmp_path: Path, recorder: RecordingLogger) -> Callable[..., fulmen.Trainer]:
    """Makes a trainer of one epoch that logs every step to ``recorder``, with everything else off."""

    def make(**arguments: Any) -> fulmen.Trainer:
        off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
        chosen = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": recorder,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
            **dict.fromkeys(off, False),
        }
        return fulmen.Trainer(**{**chosen, **arguments})

    return make
