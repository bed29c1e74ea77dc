from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fulmen.demos.mnist_datamodule import MNIST, MNISTDataModule

pytest.importorskip("sklearn")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_images_in_batches() -> None:
    datamodule = MNISTDataModule(val_split=500, num_workers=0, batch_size=16)
    datamodule.prepare_data()
    datamodule.setup("fit")
    sizes = [len(part) for part in (datamodule.dataset_train, datamodule.dataset_val, datamodule.dataset_test)]  # type: ignore[arg-type]
    assert sizes == [1000, 500, 297]
    images, digits = next(iter(datamodule.test_dataloader()))
    assert images.shape == (16, 1, 28, 28)
    assert 0 <= images.min() < images.max() <= 1
    assert digits.max() < datamodule.num_classes == 10
    assert len(list(datamodule.val_dataloader())) == 31


def test_the_split_depends_on_the_seed_only() -> None:
    splits = []
    for seed in (1, 1, 2):
        datamodule = MNISTDataModule(seed=seed)
        datamodule.setup("fit")
        splits.append(datamodule.dataset_val.indices)
        assert len(splits[-1]) == 750  # 5000 would be more than there are
    assert splits[0] == splits[1] != splits[2]


def test_normalised() -> None:
    plain = MNISTDataModule().default_transforms(torch.full((1, 28, 28), 0.1307))
    shifted = MNISTDataModule(normalize=True).default_transforms(plain)
    assert plain.mean() > 0.1
    assert shifted.abs().max() < 1e-6


def test_mnist_itself_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = SimpleNamespace(MNIST=lambda *arguments, **keywords: (arguments, keywords))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets, __spec__=None))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert len(MNIST(tmp_path, train=False)) == 297  # type: ignore[arg-type]
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    assert MNIST(tmp_path, train=False) == ((tmp_path,), {"train": False, "download": False})
