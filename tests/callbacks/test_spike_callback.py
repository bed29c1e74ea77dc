from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import SpikeDetection
from fulmen.errors import TrainingSpikeException


class Net(fulmen.LightningModule):
    """Its loss is the batch's value."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor] | None:
        return None if batch.item() < 0 else {"loss": batch.mean() + self.zero * 0}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(path, losses, callback, **arguments):
    trainer = fulmen.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        callbacks=callback,
    )
    trainer.fit(Net(), DataLoader(torch.tensor(losses), batch_size=1), **arguments)
    return trainer


def test_a_spike_ends_training_and_is_written_down(tmp_path):
    with pytest.raises(TrainingSpikeException) as caught:
        fit(tmp_path, [1.0, 1.0, 9.0, 1.0], SpikeDetection())
    assert caught.value.batch_idx == 2
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [1, 2]


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(TrainingSpikeException):
        fit(tmp_path, [1.0, float("nan")], SpikeDetection())


def test_a_quiet_run_passes(tmp_path):
    fit(tmp_path, [1.0, 1.5, 2.0, 0.5], SpikeDetection())
    assert not (tmp_path / "skip_batches.json").exists()


def test_a_skipped_batch_is_no_spike(tmp_path):
    with pytest.warns(UserWarning, match="the batch is skipped"):
        fit(tmp_path, [1.0, -1.0, 1.0], SpikeDetection())


def test_a_resumed_run_remembers(tmp_path):
    fit(tmp_path, [1.0, 1.0], SpikeDetection()).save_checkpoint(tmp_path / "after.ckpt")
    resumed = SpikeDetection()
    fit(tmp_path, [1.0, 1.0], resumed, ckpt_path=tmp_path / "after.ckpt")
    assert (resumed.last_val, resumed.running_mean) == (1.0, 1.0)
    assert resumed.is_spike(3.0)
