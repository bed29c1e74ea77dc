"""The digits job as a careful person writes it by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from common import DigitsNet, Job, Loader, accuracy, make_optimizer
from torch import Tensor, nn
from torch.nn import functional


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> float:
    """Trains one epoch; returns the mean loss over the samples."""
    model.train()
    total, count = torch.zeros(()), 0
    for images, labels in loader:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(labels)
        count += len(labels)
    return total.item() / count


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """Returns the mean loss and the accuracy over the samples."""
    model.eval()
    total, right, count = torch.zeros(()), torch.zeros(()), 0
    for images, labels in loader:
        logits: Tensor = model(images)
        total += functional.cross_entropy(logits, labels) * len(labels)
        right += accuracy(logits, labels) * len(labels)
        count += len(labels)
    return total.item() / count, right.item() / count


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Writes the checkpoint beside the old one first, so that a crash never leaves half a file."""
    temporary = path.with_suffix(".tmp")
    torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
    temporary.replace(path)


def main() -> None:
    job = Job()
    train_loader, val_loader, test_loader = job.loaders()
    model = DigitsNet()
    optimizer = make_optimizer(model)
    checkpoint, best = job.folder / "best.pt", -1.0
    with (job.folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "train_loss", "val_loss", "val_accuracy"])
        for epoch in range(job.epochs):
            train_loss = train_epoch(model, optimizer, train_loader)
            val_loss, val_accuracy = evaluate(model, val_loader)
            writer.writerow([epoch, train_loss, val_loss, val_accuracy])
            file.flush()
            if val_accuracy > best:
                best = val_accuracy
                save(checkpoint, model, optimizer, epoch)
    model.load_state_dict(torch.load(checkpoint)["model"])
    _, test_accuracy = evaluate(model, test_loader)
    job.finish(test_accuracy)


if __name__ == "__main__":
    main()
