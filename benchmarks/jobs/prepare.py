"""Writes scikit-learn's digits as tensors, split for training, validation and test: ``prepare.py FILE``."""

from __future__ import annotations

import importlib
import sys

import torch

PARTS = {"train": 1257, "val": 270, "test": 270}


def main() -> None:
    digits = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = {}
    for name, indices in zip(PARTS, torch.split(order, list(PARTS.values())), strict=True):
        parts[name] = (images[indices].clone(), labels[indices].clone())
    torch.save(parts, sys.argv[1])


if __name__ == "__main__":
    main()
