"""Where the time goes: every moment belongs to one category."""

from __future__ import annotations

import time

import torch
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.timings import CATEGORIES

PAUSE = 0.02


class Slow(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def setup(self, stage):
        time.sleep(PAUSE)

    def training_step(self, batch, batch_idx):
        time.sleep(PAUSE)
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        time.sleep(PAUSE)

    def on_train_epoch_end(self):
        time.sleep(PAUSE)

    def on_save_checkpoint(self, checkpoint):
        time.sleep(PAUSE)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def collate(samples):
    time.sleep(PAUSE)
    return torch.stack(samples)


def test_every_moment_counts_once(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=ModelCheckpoint(tmp_path),
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, val = DataLoader(torch.ones(4, 2), batch_size=2, collate_fn=collate), DataLoader(torch.ones(1, 2))
    begin = time.perf_counter()
    stop = trainer.measure_timings()
    trainer.fit(Slow(), train, val)
    stop()
    whole = time.perf_counter() - begin
    pauses = {"setup": 1, "data": 2, "forward_backward": 2, "checkpoint": 1, "validation": 1, "other": 1}
    for category, count in pauses.items():
        assert trainer.timings[category] >= count * PAUSE, category
    assert tuple(trainer.timings) == CATEGORIES
    assert sum(trainer.timings.values()) <= whole
    assert sum(trainer.timings.values()) >= sum(pauses.values()) * PAUSE


def test_nothing_is_left_behind_when_measuring_stops(tmp_path):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    before = [dict(vars(owner)) for owner in (trainer, trainer.fit_loop, trainer.data)]
    trainer.measure_timings()()
    after = [dict(vars(owner)) for owner in (trainer, trainer.fit_loop, trainer.data)]
    assert [set(names) for names in after] == [set(names) for names in before]
