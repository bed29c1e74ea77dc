"""Handwritten digits: a small network learns to read the 1,797 scans that come with scikit-learn.

Run it:  python examples/digits.py    Go on with run 0, from its last checkpoint:  python examples/digits.py --resume 0
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from fulmen import LightningModule, Trainer, seed_everything
from fulmen.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Report
from fulmen.loggers import CSVLogger


def make_loaders():
    """70 % of the scans to learn from, 10 % to choose the best checkpoint by, 20 % to test it on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, val, test = random_split(dataset, [0.7, 0.1, 0.2], generator=torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, 256), DataLoader(test, 256)


class DigitReader(LightningModule):
    """Two convolutions and a linear layer."""

    def __init__(self, width=16, dropout=0.3, learning_rate=5e-3):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(32 * width, 10),
        )  # fmt: skip

    def evaluate(self, batch, stage):
        images, digits = batch
        scores = self.layers(images)
        loss = cross_entropy(scores, digits)
        accuracy = (scores.argmax(dim=1) == digits).float().mean()
        metrics = {f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.evaluate(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.evaluate(batch, "val")

    def test_step(self, batch, batch_idx):
        self.evaluate(batch, "test")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(root="fulmen_runs/digits", resume=None, max_epochs=20, seed=0):
    """Trains, then tests the best checkpoint; `resume` is the number of the run to go on with."""
    seed_everything(seed, verbose=False)
    train, val, test = make_loaders()
    trainer = Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(root, name=None, version=resume, append=True),
        log_every_n_steps=10,
        callbacks=[
            ModelCheckpoint(monitor="val_loss", save_last=True, save_on_exception=True),
            EarlyStopping(monitor="val_loss", patience=6),
            LearningRateMonitor(),
            Report(title="Handwritten digits"),
        ],
    )
    trainer.fit(DigitReader(), train, val, ckpt_path=None if resume is None else "last")
    trainer.test(dataloaders=test, ckpt_path="best")
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", type=int, metavar="RUN")
    main(resume=parser.parse_args().resume)
