"""Writes the checkpoints beside it: ``write.py FOLDER``, run with an old PyTorch Lightning as a black box.

A run of four epochs of seven batches leaves a checkpoint after the second epoch and, from 1.5 on, one after ten
batches; and the losses of all batches.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from shutil import copy
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def data() -> TensorDataset:
    inputs = torch.randn(28, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


def define(base: type) -> Any:
    """The module, on the LightningModule of any version."""

    class StepLR(torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler._LRScheduler):
        """Old versions insist on the underscored base class, of which torch's own schedulers are no longer derived."""

    class Net(base):
        def __init__(self, width: int = 5, rate: float = 0.02) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
            self.losses = []

        def loss(self, batch: Any) -> torch.Tensor:
            return (self.layers(batch[0]) - batch[1]).square().mean()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.loss(batch)
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.rate)
            return [optimizer], [StepLR(optimizer, 1, gamma=0.7)]

    return Net


def main(folder: Path) -> None:
    import pytorch_lightning as lightning
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    torch.manual_seed(0)
    module = define(lightning.LightningModule)()
    is_new = tuple(map(int, lightning.__version__.split(".")[:2])) >= (1, 5)
    with tempfile.TemporaryDirectory() as run, chdir(run):
        callbacks = [ModelCheckpoint(dirpath="kept", monitor="val_loss", save_top_k=-1, filename="{epoch}")]
        if is_new:
            callbacks.append(ModelCheckpoint(dirpath="kept", save_top_k=-1, filename="{step}", every_n_train_steps=10))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        if not is_new:
            quiet = {"progress_bar_refresh_rate": 0, "weights_summary": None}
        callbacks.append(EarlyStopping("val_loss", patience=3))
        trainer = lightning.Trainer(max_epochs=4, logger=False, callbacks=callbacks, **quiet)
        trainer.fit(module, DataLoader(data(), 4), DataLoader(data(), 14))
        copy("kept/epoch=1.ckpt", folder / f"{lightning.__version__}-epoch.pt")
        for name in ("step=10.ckpt", "step=9.ckpt"):  # steps were counted from zero before 1.6
            if is_new and Path("kept", name).exists():
                copy(f"kept/{name}", folder / f"{lightning.__version__}-middle.pt")
    (folder / "losses.json").write_text(json.dumps(module.losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
