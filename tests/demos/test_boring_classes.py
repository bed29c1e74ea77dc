from __future__ import annotations

from typing import Any

import pytest
import torch

import fulmen
from fulmen.demos.boring_classes import (
    BoringDataModule,
    BoringDataModuleNoLen,
    BoringModel,
    DemoModel,
    IterableBoringDataModule,
    ManualOptimBoringModel,
    Net,
    RandomDataset,
    RandomDictDataset,
    RandomIterableDataset,
    RandomIterableDatasetWithLen,
)


@pytest.fixture
def trainer() -> fulmen.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
    limits = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}
    return fulmen.Trainer(accelerator="cpu", max_epochs=2, **limits, **dict.fromkeys(off, False))  # type: ignore[arg-type]


def test_datasets() -> None:
    dataset = RandomDataset(3, 4)
    assert (len(dataset), dataset.len) == (4, 4)
    assert torch.equal(dataset[1], dataset.data[1])
    sample = RandomDictDataset(3, 4)[0]
    assert torch.equal(sample["a"] + 2, sample["b"])
    for stream in (RandomIterableDataset(3, 4), RandomIterableDatasetWithLen(3, 4)):
        assert [tuple(vector.shape) for vector in stream] == [(3,)] * 4
    assert len(RandomIterableDatasetWithLen(3, 4)) == 4
    assert not hasattr(RandomIterableDataset(3, 4), "__len__")


@pytest.mark.parametrize("kind", [BoringModel, ManualOptimBoringModel])
def test_modules_that_bring_their_data(kind: Any, trainer: fulmen.Trainer) -> None:
    module = kind()
    before = module.layer.weight.clone()
    trainer.fit(module)
    assert trainer.global_step == 4
    assert not torch.equal(before, module.layer.weight)
    assert trainer.test(module, verbose=False) == [{}]
    predictions: Any = trainer.predict(module)
    assert [tuple(batch.shape) for batch in predictions] == [(1, 2)] * 2


def test_what_the_steps_return() -> None:
    module, batch = BoringModel(), torch.ones(3, 32)
    loss = (module(batch) - 1).pow(2).mean()
    steps = module.training_step(batch, 0), module.validation_step(batch, 0), module.test_step(batch, 0)
    assert [list(output) for output in steps] == [["loss"], ["x"], ["y"]]
    torch.testing.assert_close([*steps[0].values(), *steps[1].values(), *steps[2].values()], [loss] * 3)
    assert module.loss(torch.zeros(2), torch.zeros(2)) == 0


def test_the_optimizer_of_the_boring_model() -> None:
    (optimizer,), (scheduler,) = BoringModel().configure_optimizers()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("kind", [BoringDataModule, BoringDataModuleNoLen])
def test_datamodules(kind: Any, trainer: fulmen.Trainer) -> None:
    module = BoringModel()
    for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        run(module, datamodule=kind())  # type: ignore[operator]
    assert trainer.global_step == 4


def test_sizes_of_the_data() -> None:
    def sizes(datamodule: Any) -> list[Any]:
        found = []
        for stage, name in (("fit", "train"), ("validate", "val"), ("test", "test"), ("predict", "predict")):
            datamodule.setup(stage)
            loaders = getattr(datamodule, f"{name}_dataloader")()
            found.append([len(list(each)) for each in (loaders if isinstance(loaders, list) else [loaders])])
        return found

    assert sizes(BoringDataModule()) == [[64]] * 4
    assert sizes(BoringDataModuleNoLen()) == [[512], [128], [256], [64]]
    assert sizes(IterableBoringDataModule()) == [[16, 16], [32, 32], [64, 64], [128, 128]]


def test_a_stage_gets_its_data_only() -> None:
    datamodule = BoringDataModule()
    datamodule.setup("fit")
    assert [name for name in vars(datamodule) if name.startswith("random_")] == [
        "random_full",
        "random_train",
        "random_val",
    ]
    assert torch.equal(datamodule.random_val[0], datamodule.random_full[64])


def test_the_demo_model(trainer: fulmen.Trainer) -> None:
    module = DemoModel(out_dim=3, learning_rate=0.5)
    batch = torch.randn(2, 4, 8)
    assert module(batch).shape == (2, 3)
    assert module(batch).min() >= 0
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.5
    trainer.fit(module, torch.utils.data.DataLoader(RandomDataset(32, 4)))
    assert trainer.global_step == 4


def test_the_net_for_digits() -> None:
    probabilities = Net()(torch.rand(2, 1, 28, 28)).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
