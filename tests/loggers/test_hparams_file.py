"""What a run writes to `hparams.yaml`: the same for the loggers that have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.loggers import CSVLogger, TensorBoardLogger


class Plain(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saves(Plain):
    def __init__(self, width: int = 2, rate: float = 0.1, odd: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


class Hides(Plain):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


class Data(fulmen.LightningDataModule):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(1, 2))  # type: ignore[arg-type]


@pytest.fixture(params=[CSVLogger, TensorBoardLogger], ids=["csv", "tensorboard"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Fits a module; returns the text of the file, None without one."""
    if request.param is TensorBoardLogger:
        pytest.importorskip("tensorboard")

    def run(module: Any, datamodule: Any = None, **arguments: Any) -> str | None:
        logger = request.param(tmp_path)
        off = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        trainer = fulmen.Trainer(
            accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=1, **off, **arguments
        )
        trainer.fit(module, datamodule=datamodule or Data())
        file = Path(logger.log_dir) / "hparams.yaml"
        return file.read_text() if file.exists() else None

    return run


def test_module_and_datamodule_together(content):
    assert content(Saves(3)) == "odd: null\nrate: 0.1\nsize: 4\nwidth: 3\n"


def test_only_the_datamodule_has_some(content):
    assert content(Plain(), Data(7)) == "size: 7\n"


def test_what_is_not_for_loggers_is_left_out(content):
    assert content(Hides()) == "size: 4\n"


def test_the_values_at_saving_count(content):
    module = Saves()
    module.hparams.width = 99
    assert "width: 2\n" in content(module)
    assert module.hparams.width == 99


def test_values_without_a_safe_form_are_skipped(content):
    with pytest.warns(UserWarning, match=r"Not written to .*hparams.yaml.*hyperparameter 'odd'"):
        assert content(Saves(odd=object())) == "rate: 0.1\nsize: 4\nwidth: 2\n"


def test_it_can_be_switched_off(content):
    assert content(Saves(), enable_autolog_hparams=False) in (None, "{}\n")


def test_one_name_with_two_values(content):
    class Other(Data):
        def __init__(self, width: int = 5) -> None:
            fulmen.LightningDataModule.__init__(self)
            self.save_hyperparameters()

    with pytest.raises(RuntimeError, match=r"both saved the hyperparameters \['width'\], with different values"):
        content(Saves(2), Other())
    assert content(Saves(5), Other()) == "odd: null\nrate: 0.1\nwidth: 5\n"


def test_it_can_be_loaded_back(content, tmp_path):
    content(Saves(3))
    (file,) = tmp_path.glob("*/*/hparams.yaml")
    torch.save({"state_dict": Saves(1).state_dict(), "pytorch-lightning_version": "2.6.6", "epoch": 0,
                "global_step": 0}, tmp_path / "x.ckpt")  # fmt: skip
    assert Saves.load_from_checkpoint(tmp_path / "x.ckpt", hparams_file=file).hparams.width == 3
