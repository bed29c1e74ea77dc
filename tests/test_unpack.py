from __future__ import annotations

from typing import Any

import pytest
import torch

import fulmen
from fulmen.errors import MisconfigurationException
from fulmen.unpack import datamodule_and_loaders, lightning_module


class Net(fulmen.LightningModule):
    pass


DATA, OTHER = fulmen.LightningDataModule(), fulmen.LightningDataModule()


def test_a_module_is_taken_as_it_is() -> None:
    first, second = Net(), Net()
    assert lightning_module(first, "fit") is first
    assert lightning_module(first, "test", second) is first
    assert lightning_module(None, "test", second) is second


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, r"`Trainer.fit\(\)` without a model"),
        (Net, r"was given the class Net; pass an object: `Net\(...\)`"),
        (torch.nn.Linear(1, 1), "was given Linear, expected a `fulmen.LightningModule`"),
        (3, "was given int"),
        (type("Foreign", (), {"__module__": "pytorch_lightning.core"})(), "another package's LightningModule"),
        (type("Heir", (type("Base", (), {"__module__": "lightning.pytorch"}),), {})(), "another package's"),
    ],
)
def test_what_is_no_module(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        lightning_module(model, "fit")


def test_loaders_stay_loaders() -> None:
    assert datamodule_and_loaders("fit", None, train=[1], validate=None) == (None, {"train": [1], "validate": None})


def test_a_datamodule() -> None:
    datamodule, loaders = datamodule_and_loaders("fit", DATA, train=None, validate=None)
    assert datamodule is DATA
    assert not any(loaders.values())


def test_a_datamodule_in_the_place_of_loaders() -> None:
    datamodule, loaders = datamodule_and_loaders("fit", None, train=DATA, validate=None)
    assert datamodule is DATA
    assert not any(loaders.values())
    assert datamodule_and_loaders("test", None, test=DATA)[0] is DATA


@pytest.mark.parametrize(
    ("datamodule", "loaders"),
    [
        (DATA, {"train": [1], "validate": None}),
        (DATA, {"train": None, "validate": [1]}),
        (None, {"train": DATA, "validate": [1]}),
    ],
)
def test_not_both(datamodule: Any, loaders: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"`Trainer.fit` was given dataloaders and a datamodule"):
        datamodule_and_loaders("fit", datamodule, **loaders)


def test_what_is_no_datamodule() -> None:
    with pytest.raises(TypeError, match=r"datamodule=...\)` was given list"):
        datamodule_and_loaders("fit", [1], train=None)
