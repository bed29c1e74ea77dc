"""The digits job for a framework that offers Lightning's names; the two programs beside it name the framework."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from common import DigitsNet, Job, accuracy, make_optimizer
from torch import Tensor
from torch.nn import functional


def module_class(base: Any) -> Any:
    """Returns the user's module on the framework's LightningModule."""

    class Digits(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = DigitsNet()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.model)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            loss = functional.cross_entropy(self.model(images), labels)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def evaluate(self, batch: tuple[Tensor, Tensor], name: str) -> None:
            images, labels = batch
            logits = self.model(images)
            self.log(f"{name}_loss", functional.cross_entropy(logits, labels))
            self.log(f"{name}_accuracy", accuracy(logits, labels))

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.evaluate(batch, "val")

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.evaluate(batch, "test")

    return Digits


def run(framework: Any, checkpoint_class: Any, logger_class: Any) -> None:
    """Does the whole job with the framework's Trainer."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = Job()
    train_loader, val_loader, test_loader = job.loaders()
    trainer = framework.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=job.epochs,
        default_root_dir=job.folder,
        callbacks=[checkpoint_class(job.folder, monitor="val_accuracy", mode="max")],
        logger=logger_class(job.folder),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module_class(framework.LightningModule)(), train_loader, val_loader)
    result = trainer.test(dataloaders=test_loader, ckpt_path="best", verbose=False)
    job.finish(result[0]["test_accuracy"])
