"""A module with every kind of state, and a picture of everything that a probe must leave as it is."""

from __future__ import annotations

import logging
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.fabric.seed import capture_random

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Net(LightningModule):
    """Changes everything it has in each step, and fails when told to.

    ``limit`` is the batch size from which on memory runs out; ``error`` is raised in the step of that number.
    """

    def __init__(
        self, lr: float = 0.01, batch_size: int = 4, limit: int | None = None, num_samples: int = 10_000
    ) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.batch_size = batch_size
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 1).requires_grad_(False)
        self.mean = MeanMetric()
        self.register_buffer("steps_seen", torch.zeros(()), persistent=False)
        self.average = torch.zeros(1)
        self.history: list[Any] = []
        self.recent: deque[int] = deque(maxlen=3)
        self.by_name: dict[str, list[int]] = {"sizes": []}
        self.generator = torch.Generator().manual_seed(3)
        self.limit, self.num_samples = limit, num_samples
        self.error: BaseException | None = None
        self.error_at = 1
        self.sizes = Sizes()

    def compute(self, batch: Tensor) -> Tensor:
        """The loss; leaves traces everywhere."""
        (x,) = batch
        self.sizes.run.append(self.batch_size)
        self.sizes.seen.append(len(x))
        if self.error is not None and len(self.history) == self.error_at:
            raise self.error
        if self.limit is not None and self.batch_size >= self.limit:
            raise RuntimeError(OUT_OF_MEMORY)
        random.random()
        numpy.random.rand()
        self.steps_seen += 1
        self.average.add_(1)
        self.history.append(len(x))
        self.recent.append(len(x))
        self.by_name["sizes"].append(len(x))
        torch.rand(1, generator=self.generator)
        hidden = self.body(x) if len(x) > 1 else self.body[0](x)
        loss = (self.head(hidden) + self.frozen(hidden)).pow(2).mean()
        self.mean.update(loss.detach())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.compute(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.compute(batch)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.compute(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self) -> Any:
        data = TensorDataset(torch.ones(self.num_samples, 2))
        return DataLoader(data, batch_size=self.batch_size, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(self.num_samples, 2)), batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Sizes:
    """What was run; not a part of the module, so that it survives."""

    def __init__(self) -> None:
        self.run: list[int] = []
        self.seen: list[int] = []

    @property
    def tried(self) -> list[tuple[int, int]]:
        """Batch sizes in the order in which they were tried, each with its number of batches."""
        groups: list[list[int]] = []
        for size in self.run:
            if not groups or groups[-1][0] != size:
                groups.append([size, 0])
            groups[-1][1] += 1
        return [(size, count) for size, count in groups]


class Data(LightningDataModule):
    """A datamodule with hyperparameters and something made in ``setup``."""

    def __init__(self, batch_size: int = 4, fails: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.events: list[str] = Events()
        self.generator = torch.Generator().manual_seed(7)

    def prepare_data(self) -> None:
        self.events.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.events.append(f"setup {stage}")
        if self.hparams.fails:
            raise OSError("no data")
        self.data = TensorDataset(torch.ones(64, 2))

    def teardown(self, stage: str) -> None:
        self.events.append(f"teardown {stage}")

    def on_exception(self, exception: BaseException) -> None:
        self.events.append(f"on_exception {type(exception).__name__}")

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, self.hparams.batch_size, shuffle=True, generator=self.generator)


class Events(list[str]):
    """A list that is compared by what it is."""


def tensors_of(module: nn.Module) -> dict[str, Any]:
    parameters = {name: (p.clone(), p.requires_grad, p.grad, p.data_ptr()) for name, p in module.named_parameters()}
    return {"parameters": parameters, "buffers": {name: b.clone() for name, b in module.named_buffers()}}


def picture(trainer: Trainer, module: Net, datamodule: Data | None, folder: Path) -> dict[str, Any]:
    """Everything that a probe must leave as it is, to be compared by ``same``."""
    fit = trainer.fit_loop
    return {
        **tensors_of(module),
        "modes": [part.training for part in module.modules()],
        "attributes": {
            name: value for name, value in vars(module).items() if name not in ("_hparams", "_hparams_initial")
        },
        "lists": (list(module.history), list(module.recent), list(module.by_name["sizes"])),
        "average": module.average.clone(),
        "metric": (module.mean.mean_value.clone(), module.mean.weight.clone()),
        "hparams": dict(module.hparams),
        "datamodule": None if datamodule is None else ({**vars(datamodule)}, dict(datamodule.hparams)),
        "generators": [owner.generator.get_state() for owner in (module, datamodule) if owner is not None],
        "trainer": {**vars(trainer)},
        "fit_loop": {**vars(fit)},
        "progress": [p.state_dict() for p in (fit.epoch_progress, fit.batch_progress, fit.val_loop.batch_progress)],
        "state": (trainer.state.status, trainer.state.fn, trainer.state.stage, trainer.should_stop),
        "callbacks": list(trainer.callbacks),
        "loggers": list(trainer.loggers),
        "strategy": {**vars(trainer.strategy)},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "metrics": dict(trainer.callback_metrics),
        "random": capture_random(),
        "files": {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()},
        "process": (logging.getLogger("fulmen").level, torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def same(before: Any, after: Any, path: str = "") -> None:
    """Fails where two pictures differ: tensors bit by bit, plain values by value, other objects by identity."""
    if isinstance(before, Tensor):
        assert torch.equal(before.nan_to_num(7), after.nan_to_num(7)), path
        assert before.dtype == after.dtype, path
    elif isinstance(before, dict):
        assert list(before) == list(after), path
        for name in before:
            same(before[name], after[name], f"{path}.{name}")
    elif type(before) in (list, tuple):
        assert len(before) == len(after), path
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            same(one, other, f"{path}[{place}]")
    elif isinstance(before, (int, float, str, bytes)):
        assert before == after, path
    else:
        assert before is after, path


@pytest.fixture
def unchanged(tmp_path: Path) -> Any:
    """``check = unchanged(trainer, module)``; later ``check()`` fails if anything is not as it was."""

    def watch(trainer: Trainer, module: Net, datamodule: Data | None = None) -> Any:
        before = picture(trainer, module, datamodule, tmp_path)
        return lambda: same(before, picture(trainer, module, datamodule, tmp_path))

    return watch


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def data() -> type[Data]:
    return Data


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a trainer that writes into a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def trainer(**arguments: Any) -> Trainer:
        chosen: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**{**chosen, **arguments})

    return trainer
