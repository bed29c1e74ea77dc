"""Handwritten digits with a loop of your own: `Fabric` brings device, precision and checkpoints, the loop stays yours.

Run it: python examples/raw_loop.py   (needs scikit-learn)
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from fulmen import Fabric


def make_loaders() -> tuple[DataLoader, DataLoader]:
    """1,437 images to learn from and 360 to test on, each 8 x 8."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, test = random_split(dataset, [0.8, 0.2], generator=torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=256)


def make_model() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """The fraction of images whose digit was recognised."""
    model.eval()
    with torch.no_grad():
        right = sum((model(images).argmax(1) == digits).sum().item() for images, digits in loader)
    return right / len(loader.dataset)


def main() -> None:
    """Train for twelve epochs, then test."""
    fabric = Fabric(accelerator="auto")
    fabric.seed_everything(42)
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    train_loader, test_loader = fabric.setup_dataloaders(*make_loaders())

    for epoch in range(12):
        model.train()
        for images, digits in train_loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), digits)
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {loss.item():.4f}")

    fabric.print(f"test accuracy {accuracy(model, test_loader):.4f}")


if __name__ == "__main__":
    main()
