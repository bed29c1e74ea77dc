"""One trigger for every "when": validation, checkpoints, logging and the length of a run, in any unit."""

import re
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Every, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.errors import MisconfigurationException
from fulmen.loggers import CSVLogger

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


class Counting(LightningModule):
    """Notes the step at which each validation runs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.validated = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", float(self.global_step))

    def on_validation_start(self):
        self.validated.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(size=10, batch_size=2):
    return DataLoader(TensorDataset(torch.zeros(size, 2)), batch_size=batch_size)


def fitted(tmp_path, callbacks=(), **arguments):
    model = Counting()
    settings = {**QUIET, "enable_checkpointing": bool(callbacks), "default_root_dir": tmp_path, **arguments}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(model, loader(), loader(2))
    return model, trainer


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("4 steps", [4, 8, 12]),
        (Every(batches=4), [4, 8, 12]),
        ("6 samples", [3, 6, 9, 12, 15]),  # two samples a batch, five batches an epoch
        ("7 samples", [4, 7, 11, 14]),  # passed by the batch in which the count is reached
        (Every(epochs=2), [10]),
        ("0.0001 s", list(range(1, 16))),
        (timedelta(hours=1), []),
    ],
)
def test_validation_by_any_unit_over_epochs(tmp_path, interval, expected):
    model, _ = fitted(tmp_path, max_epochs=3, val_check_interval=interval)
    assert model.validated == expected


def test_steps_are_optimizer_steps(tmp_path):
    model, _ = fitted(tmp_path, max_epochs=2, val_check_interval="2 steps", accumulate_grad_batches=2)
    assert model.validated == [2, 4, 6]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("7 steps", 7), ("2 epochs", 10), ("7 samples", 4), (Every(batches=13), 13), ("10 samples", 5), ("11 samples", 6)],
)
def test_duration(tmp_path, duration, steps):
    _, trainer = fitted(tmp_path, max_duration=duration)
    assert trainer.global_step == steps


def test_duration_in_time(tmp_path):
    _, trainer = fitted(tmp_path, max_duration="1 h", max_epochs=1)
    assert [type(callback).__name__ for callback in trainer.callbacks] == ["Timer"]


def test_a_limit_is_said_once():
    with pytest.raises(MisconfigurationException, match=re.escape("max_duration='7 steps', max_steps=3")):
        Trainer(max_duration="7 steps", max_steps=3)
    with pytest.raises(MisconfigurationException, match="log_every"):
        Trainer(log_every="7 steps", log_every_n_steps=3)
    with pytest.raises(MisconfigurationException, match="every_n_epochs"):
        ModelCheckpoint(every="7 steps", every_n_epochs=3)


@pytest.mark.parametrize(
    ("every", "steps"),
    [("4 steps", [4, 8]), ("6 samples", [3, 6, 9]), (Every(batches=5), [5, 10]), ("1 epoch", [5, 10]), ("2 h", [])],
)
def test_checkpoints_by_any_unit(tmp_path, every, steps):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every=every, save_top_k=-1)
    fitted(tmp_path, [checkpoint], max_epochs=2)
    found = sorted(int(path.stem.removeprefix("step=")) for path in tmp_path.glob("*.ckpt"))
    assert found == steps


def test_a_checkpoint_follows_the_validation_of_its_step(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}-{val:.0f}", monitor="val", every="6 samples", save_top_k=-1)
    fitted(tmp_path, [checkpoint], max_epochs=1, val_check_interval="6 samples")
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=3-val=3.ckpt"]


@pytest.mark.parametrize(
    ("every", "rows"),
    [("3 steps", [2, 5, 8]), (4, [3, 7]), ("6 samples", [2, 5, 8]), ("1 h", [0]), ("1 epoch", [4, 9])],
)
def test_logging_by_any_unit(tmp_path, every, rows):
    logger = CSVLogger(tmp_path, name=None, version="")
    fitted(tmp_path, logger=logger, max_epochs=2, log_every=every, limit_val_batches=0)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert [int(line.split(",")[column]) for line in lines[1:]] == rows


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 8])
def test_counts_go_on_after_a_resume(tmp_path, step):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every="1 step", save_top_k=-1)
    whole, _ = fitted(tmp_path, [checkpoint], max_epochs=3, val_check_interval="7 samples")
    model = Counting()
    again = ModelCheckpoint(tmp_path, "again-{step}", every="1 step")
    trainer = Trainer(**QUIET, callbacks=[again], max_epochs=3, val_check_interval="7 samples")
    trainer.fit(model, loader(), loader(2), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert model.validated == [at for at in whole.validated if at > step]
