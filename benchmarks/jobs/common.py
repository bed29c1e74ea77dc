"""The job that all three programs do: a small CNN on 8x8 digits; same data, batches, model, optimizer and epochs.

A program trains EPOCHS epochs, validates after each, writes the metrics of every epoch to a CSV file, keeps the
checkpoint with the best validation accuracy, and tests that one at the end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SEED, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 0, 32, 0.05, 0.9

Loader = DataLoader[tuple[Tensor, ...]]


class DigitsNet(nn.Module):
    """Two convolutions and a linear layer: (batch, 1, 8, 8) images -> (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class Job:
    """The arguments and the data of one program: ``PROGRAM DATA FOLDER EPOCHS``."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        torch.set_num_threads(1)
        self.data, self.folder, self.epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        torch.manual_seed(SEED)

    def loaders(self) -> tuple[Loader, Loader, Loader]:
        """Returns the loaders for training (shuffled by a generator of their own), validation and test."""
        tensors = torch.load(self.data)
        train, val, test = (TensorDataset(*tensors[part]) for part in ("train", "val", "test"))
        generator = torch.Generator().manual_seed(SEED)
        return (
            DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, generator=generator),
            DataLoader(val, batch_size=BATCH_SIZE),
            DataLoader(test, batch_size=BATCH_SIZE),
        )

    def finish(self, accuracy: float) -> None:
        """Prints the result; the parent process reads the last line."""
        seconds = time.perf_counter() - self.start
        sys.stdout.write("\n" + json.dumps({"accuracy": accuracy, "seconds_after_import": seconds}) + "\n")


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the share of right answers in the batch, a scalar."""
    return (logits.argmax(dim=1) == labels).float().mean()
