"""The hooks that modules and datamodules share: where data come from, how a batch gets to its device, checkpoints."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from fulmen import tree
from fulmen.errors import MisconfigurationException
from fulmen.types import EVAL_DATALOADERS, TRAIN_DATALOADERS

__all__ = ["CheckpointHooks", "DataHooks"]


class DataHooks:
    """Hooks for data; those of a datamodule come before those of the module."""

    prepare_data_per_node: bool = True
    """Whether `prepare_data` runs on one process of each node; False: on one process in all."""

    allow_zero_length_dataloader_with_multiple_devices: bool = False
    """Whether the loader of one process may be empty while others are not; False: that is an error."""

    def prepare_data(self) -> None:
        """Downloads and prepares data on disk. Runs on one process, so do not keep state on `self` here."""

    def setup(self, stage: str) -> None:
        """Makes what the stage needs, on every process.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """

    def teardown(self, stage: str) -> None:
        """Undoes `setup`, on every process, at the end of a run.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """The iterable of training batches, or any nesting of iterables."""
        self._refuse("train_dataloader")

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """The iterable of validation batches, or several, which are run one after the other."""
        self._refuse("val_dataloader")

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """The iterable of test batches, or several, which are run one after the other."""
        self._refuse("test_dataloader")

    def predict_dataloader(self) -> EVAL_DATALOADERS:
        """The iterable of batches to predict for, or several, which are run one after the other."""
        self._refuse("predict_dataloader")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch to the device: every tensor in it, and every other object with a `to` method.

        Args:
            batch: What the loader yielded.
            device: Where it is needed.
            dataloader_idx: Which of several loaders it came from.

        Returns:
            The batch on the device.
        """
        return tree.move(batch, device)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch before it is moved to the device; returns the batch to use."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch on the device, for instance by augmentations there; returns the batch to use."""
        return batch

    def _refuse(self, hook: str) -> NoReturn:
        raise MisconfigurationException(
            f"`{type(self).__name__}.{hook}` must be implemented to be used. Write it, or pass loaders to the Trainer: "
            f"`trainer.fit(model, train_dataloaders, val_dataloaders)`, `trainer.test(model, dataloaders)`.",
            subject=self,
        )


class CheckpointHooks:
    """Hooks of whoever wants to see or change a checkpoint."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts entries of its own into a checkpoint, or changes it, before it is written."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes its entries from a checkpoint; called before the state of the module is loaded."""
