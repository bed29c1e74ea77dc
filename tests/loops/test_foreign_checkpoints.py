"""What a checkpoint of Lightning lacks, and what it has in another way than one would think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0)  # never falls

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class SaveAfterValidation(fulmen.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: fulmen.Trainer, pl_module: fulmen.LightningModule) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


def fit(module: fulmen.LightningModule, *callbacks: fulmen.Callback, ckpt_path: Path | None = None) -> fulmen.Trainer:
    trainer = fulmen.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        val_check_interval=3,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )
    data = torch.ones(7, 2)
    trainer.fit(module, DataLoader(data), DataLoader(data), ckpt_path=ckpt_path)
    return trainer


def without_ours(path: Path) -> Path:
    content = torch.load(path, weights_only=True)
    del content["fulmen"]
    torch.save(content, path)
    return path


def test_a_plateau_without_its_metric_is_left_alone_in_the_rest_of_the_epoch(tmp_path: Path) -> None:
    """Lightning's files hold no metrics, and the validation of this epoch was before the checkpoint."""
    path = tmp_path / "after.ckpt"
    whole = Net()
    fit(whole, SaveAfterValidation(path))
    assert whole.rates == pytest.approx([1e-2] * 14 + [1e-3] * 7)
    resumed = Net()
    fit(resumed, ckpt_path=path)
    assert resumed.rates == whole.rates[6:]
    foreign = Net()
    with pytest.warns(RuntimeWarning, match=r"monitors 'val_loss', which was not logged.* holds no metrics"):
        fit(foreign, ckpt_path=without_ours(path))
    assert foreign.rates == pytest.approx([1e-2] * 15)  # one step of the scheduler less


class Manual(Net):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch).square().mean())
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def test_steps_by_hand_are_not_counted_by_epoch(tmp_path: Path) -> None:
    trainer = fit(Manual())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loops = torch.load(tmp_path / "end.ckpt", weights_only=True)["loops"]["fit_loop"]
    both = {"ready": 21, "completed": 21}
    assert loops["epoch_loop.manual_optimization.optim_step_progress"] == {"total": both, "current": both}
