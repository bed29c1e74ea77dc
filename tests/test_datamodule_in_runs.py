"""A datamodule in the runs of a Trainer: when its methods are called, and its place in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen

heard: list[tuple[str, str]] = []


def noted(who: str, name: str) -> Any:
    def method(self: Any, stage: str = "") -> None:
        heard.append((who, f"{name} {stage}".strip()))

    return method


class Net(fulmen.LightningModule):
    prepare_data, setup, teardown = (noted("M", name) for name in ("prepare_data", "setup", "teardown"))

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(fulmen.LightningDataModule):
    prepare_data, setup, teardown = (noted("D", name) for name in ("prepare_data", "setup", "teardown"))

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.seen = 0

    def loader(self) -> Any:
        return DataLoader(torch.ones(self.hparams.size, 2))  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

    def on_exception(self, exception: BaseException) -> None:
        heard.append(("D", type(exception).__name__))


class Other(Data):
    """The same under another name."""


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    heard.clear()


@pytest.fixture
def trainer(tmp_path: Path) -> fulmen.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
    return fulmen.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **dict.fromkeys(off, False))


@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_the_order_in_each_run(trainer: fulmen.Trainer, run: str) -> None:
    for _ in range(2):
        getattr(trainer, run)(Net(), datamodule=Data())
    once = [(who, name) for name in ("prepare_data", f"setup {run}", f"teardown {run}") for who in ("D", "M")]
    assert heard == once * 2


def test_in_the_place_of_loaders(trainer: fulmen.Trainer) -> None:
    data = Data()
    trainer.fit(Net(), data)
    assert (trainer.datamodule, data.trainer) == (data, trainer)
    assert (trainer.num_training_batches, trainer.num_val_batches) == (2, [2])


def test_it_hears_of_an_exception(trainer: fulmen.Trainer) -> None:
    module = Net()
    module.training_step = lambda batch, batch_idx: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, datamodule=Data())
    assert heard == [("D", "prepare_data"), ("M", "prepare_data"), ("D", "setup fit"), ("M", "setup fit"),
                     ("D", "ZeroDivisionError")]  # fmt: skip


def test_its_state_and_parameters_are_in_the_checkpoint(trainer: fulmen.Trainer, tmp_path: Path) -> None:
    trainer.fit(Net(), datamodule=Data(3))
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    content = torch.load(tmp_path / "x.ckpt")
    assert (content["Data"], content["datamodule_hyper_parameters"]) == ({"seen": 7}, {"size": 3})
    assert content["datamodule_hparams_name"] == "kwargs"
    loaded = Data.load_from_checkpoint(tmp_path / "x.ckpt")
    assert (loaded.seen, loaded.hparams.size) == (7, 3)
    assert Data.load_from_checkpoint(tmp_path / "x.ckpt", size=5).hparams.size == 5
    with pytest.raises(TypeError, match=r"`loaded = Data.load_from_checkpoint\(...\)`"):
        Data().load_from_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_every_run_restores_its_state(trainer: fulmen.Trainer, tmp_path: Path, run: str) -> None:
    trainer.fit(Net(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    trainer.fit_loop.max_epochs = 2
    data, other = Data(), Other()
    getattr(trainer, run)(Net(), datamodule=data, ckpt_path=tmp_path / "x.ckpt")
    getattr(trainer, run)(Net(), datamodule=other, ckpt_path=tmp_path / "x.ckpt")
    assert (data.seen, other.seen) == (7, 0)  # the state is kept under the name of the class
