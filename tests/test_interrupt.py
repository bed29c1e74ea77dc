"""A run that is interrupted anywhere: what is saved then, and how it goes on."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer, seed_everything
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger

BATCHES, EPOCHS = 4, 2


class Net(LightningModule):
    """Notes which samples it was trained on and what was validated; calls `trouble` in a batch."""

    def __init__(self, trouble=None, at=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trouble, self.at, self.tape = trouble, at, []

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.at:
            self.trouble()
        self.tape.append((self.current_epoch, batch_idx, batch[0].flatten().tolist()))
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.tape.append((self.current_epoch, "validation"))
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Broken(Exception):
    """Something in the user's code."""


def fail():
    raise Broken


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def press_it_twice():
    press_ctrl_c()
    press_ctrl_c()


def loader(shuffle=True):
    data = TensorDataset(torch.arange(2 * BATCHES, dtype=torch.float32).unsqueeze(1))
    return DataLoader(data, batch_size=2, shuffle=shuffle)


def fit(folder, module, *callbacks, ckpt_path=None, seed=7):
    seed_everything(seed, verbose=False)
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", save_last=True, save_on_exception=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[checkpoint, *callbacks],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), loader(shuffle=False), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def whole(tmp_path_factory):
    """The tape of a run that nothing interrupts."""
    module = Net()
    fit(tmp_path_factory.mktemp("whole"), module)
    return module.tape


@pytest.mark.parametrize("at", [(0, 1), (0, BATCHES - 1), (1, 0), (1, 2)])  # before the first step nothing is saved
@pytest.mark.parametrize(("trouble", "error"), [(fail, Broken), (press_it_twice, SystemExit)])
def test_a_batch_that_was_interrupted_in_its_middle_is_trained_again(tmp_path, whole, trouble, error, at):
    first, second = Net(trouble, at), Net()
    with pytest.raises(error):
        fit(tmp_path, first)
    fit(tmp_path, second, ckpt_path="last", seed=8)
    assert first.tape + second.tape == whole


def test_ctrl_c_ends_the_run_after_the_batch(tmp_path, whole):
    first, second = Net(press_ctrl_c, at=(1, 1)), Net()
    with pytest.raises(SystemExit):
        fit(tmp_path, first)
    assert first.tape[-1][:2] == (1, 1)
    fit(tmp_path, second, ckpt_path="last", seed=8)
    assert first.tape + second.tape == whole


def test_the_interrupted_run_is_saved_however_often_ctrl_c_is_pressed(tmp_path):
    class Impatient(Callback):
        def on_exception(self, trainer, pl_module, exception):
            press_ctrl_c()

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            if trainer.interrupted:
                press_ctrl_c()

    with pytest.raises(SystemExit):
        fit(tmp_path, Net(press_it_twice, at=(0, 2)), Impatient())
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Late(Callback):
    """Presses Ctrl-C when all is done but the end of the run."""

    def on_train_end(self, trainer, pl_module):
        press_ctrl_c()


def test_ctrl_c_that_comes_too_late_for_the_loop_is_not_lost(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, Net(), Late())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_last_is_found_where_the_logger_puts_checkpoints(tmp_path):
    def run(version, max_epochs, ckpt_path):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            logger=CSVLogger(tmp_path, name=None, version=version, append=True),
            callbacks=ModelCheckpoint(monitor="val_loss", save_last=True),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(), loader(), loader(shuffle=False), ckpt_path=ckpt_path)
        return trainer

    run(None, 1, None)
    trainer = run(0, 2, "last")
    assert trainer.ckpt_path == str(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    rows = (tmp_path / "version_0" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
