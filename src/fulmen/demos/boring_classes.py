"""Modules and data that learn nothing of interest, to test loops, callbacks and loggers with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fulmen.datamodule import LightningDataModule
from fulmen.module import LightningModule

__all__ = [
    "BoringDataModule",
    "BoringDataModuleNoLen",
    "BoringModel",
    "DemoModel",
    "IterableBoringDataModule",
    "ManualOptimBoringModel",
    "Net",
    "RandomDataset",
    "RandomDictDataset",
    "RandomIterableDataset",
    "RandomIterableDatasetWithLen",
]


class RandomDataset(Dataset[Tensor]):
    """Random vectors.

    Args:
        size: Length of a vector.
        length: Number of vectors.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """Random vectors "a", each with "b", which is 2 more.

    Args:
        size: Length of a vector.
        length: Number of samples.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        a = self.data[index]
        return {"a": a, "b": a + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """A stream of random vectors, new ones each time.

    Args:
        size: Length of a vector.
        count: Number of vectors.
    """

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """A stream of random vectors whose number is known; arguments as for ``RandomIterableDataset``."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """One linear layer from 32 to 2 numbers, which learns to give ones; brings its own data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The layer. Shapes: (N, 32) -> (N, 2)."""
        output: Tensor = self.layer(x)
        return output

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean squared error; the labels are ones unless given."""
        return F.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Gives the loss under "loss"."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Gives the loss under "x"."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Gives the loss under "y"."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> Any:
        """SGD, whose learning rate of 0.1 is multiplied by 0.1 after each epoch."""
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """64 samples, one a batch; the other stages have as many of their own."""
        return DataLoader(RandomDataset(32, 64))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class ManualOptimBoringModel(BoringModel):
    """The same with manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of the optimizer."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class _OneDatasetEach(LightningDataModule):
    """Datamodules with one dataset for each stage, loaded sample by sample."""

    random_train: Dataset[Tensor]
    random_val: Dataset[Tensor]
    random_test: Dataset[Tensor]
    random_predict: Dataset[Tensor]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The samples to train on, one a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The samples to validate on, one a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The samples to test on, one a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """The samples to predict, one a batch."""
        return DataLoader(self.random_predict)


class BoringDataModule(_OneDatasetEach):
    """256 random vectors of 32 numbers, a quarter for each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        """Takes the quarters that the stage needs."""
        if stage == "fit":
            self.random_train = self._quarter(0)
        if stage in ("fit", "validate"):
            self.random_val = self._quarter(1)
        if stage == "test":
            self.random_test = self._quarter(2)
        if stage == "predict":
            self.random_predict = self._quarter(3)

    def _quarter(self, number: int) -> Subset[Tensor]:
        return Subset(self.random_full, range(64 * number, 64 * (number + 1)))


class BoringDataModuleNoLen(_OneDatasetEach):
    """Streams of random vectors of 32 numbers, whose lengths (512, 128, 256 and 64) nobody knows."""

    def setup(self, stage: str) -> None:
        """Makes the streams that the stage needs."""
        if stage == "fit":
            self.random_train = RandomIterableDataset(32, 512)
        if stage in ("fit", "validate"):
            self.random_val = RandomIterableDataset(32, 128)
        if stage == "test":
            self.random_test = RandomIterableDataset(32, 256)
        if stage == "predict":
            self.random_predict = RandomIterableDataset(32, 64)


class IterableBoringDataModule(LightningDataModule):
    """Two loaders for each stage: one that knows its length, and one that does not."""

    def setup(self, stage: str) -> None:
        """Makes the datasets that the stage needs."""
        if stage == "fit":
            self.train_datasets = self._pair(16)
        if stage in ("fit", "validate"):
            self.val_datasets = self._pair(32)
        if stage == "test":
            self.test_datasets = self._pair(64)
        if stage == "predict":
            self.predict_datasets = self._pair(128)

    def _pair(self, length: int) -> list[Dataset[Tensor]]:
        return [RandomDataset(32, length), RandomIterableDataset(32, length)]

    def train_dataloader(self) -> list[DataLoader[Tensor]]:
        """16 samples each."""
        return _loaders(self.train_datasets)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """32 samples each."""
        return _loaders(self.val_datasets)

    def test_dataloader(self) -> list[DataLoader[Tensor]]:
        """64 samples each."""
        return _loaders(self.test_datasets)

    def predict_dataloader(self) -> list[DataLoader[Tensor]]:
        """128 samples each."""
        return _loaders(self.predict_datasets)


def _loaders(datasets: list[Dataset[Tensor]]) -> list[DataLoader[Tensor]]:
    return [DataLoader(dataset) for dataset in datasets]


class DemoModel(LightningModule):
    """One linear layer whose output is summed up: the least that can be trained.

    Args:
        out_dim: Outputs of the layer.
        learning_rate: Of Adam.
    """

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        """The layer, negative outputs cut off. Shapes: (N, 32) -> (N, out_dim)."""
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        """The sum of the outputs."""
        return self(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A small convolutional network for images of digits. Shapes: (N, 1, 28, 28) -> (N, 10), log probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions, two linear layers."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)
