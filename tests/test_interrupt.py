"""A run that is interrupted anywhere: what is saved then, and how it goes on."""

from __future__ import annotations

import os
import signal
import sys

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


def fit(folder, module, *callbacks, ckpt_path=None, seed=7, save_on_exception=True):
    seed_everything(seed, verbose=False)
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", save_last=True, save_on_exception=save_on_exception)
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


def told(caplog):
    """The last thing that was said in a run that ended without a traceback."""
    return [record.getMessage() for record in caplog.records if record.name == "fulmen"][-1]


def end_the_process():
    sys.exit(3)


def test_the_last_line_says_how_to_go_on(tmp_path, caplog):
    caplog.set_level("INFO", logger="fulmen")
    with pytest.raises(SystemExit):
        fit(tmp_path, Net(press_ctrl_c, at=(1, 1)))
    last = str(tmp_path / "last.ckpt")
    lines = told(caplog).splitlines()
    assert lines[0] == "Interrupted by Ctrl-C."
    how = f"`trainer.fit(model, ckpt_path={last!r})`."
    assert lines[-1] == f"To go on from the newest checkpoint (global step 6): {how}"


def test_an_exception_is_noted_how_to_go_on(tmp_path):
    with pytest.raises(Broken) as caught:
        fit(tmp_path, Net(fail, at=(1, 2)))
    where, how = caught.value.__notes__
    assert where == "During fit: epoch 1, batch 2, global step 6."
    assert how.endswith(f"(global step 6): `trainer.fit(model, ckpt_path={str(tmp_path / 'last.ckpt')!r})`.")


def test_a_process_that_is_ended_says_how_to_go_on(tmp_path, caplog):
    caplog.set_level("INFO", logger="fulmen")
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, Net(end_the_process, at=(1, 0)))
    assert caught.value.code == 3
    lines = told(caplog).splitlines()
    assert lines[:2] == ["Ended by SystemExit.", "During fit: epoch 1, batch 0, global step 4."]
    assert "global step 4" in lines[2]


def test_nothing_is_said_where_there_is_no_checkpoint(tmp_path, caplog):
    caplog.set_level("INFO", logger="fulmen")
    with pytest.raises(SystemExit):
        fit(tmp_path, Net(press_it_twice, at=(0, 0)))
    assert told(caplog) == "Interrupted by Ctrl-C."
    with pytest.raises(Broken) as caught:
        fit(tmp_path, Net(fail, at=(0, 0)))
    assert not any("To go on" in note for note in caught.value.__notes__)


def test_a_checkpoint_without_optimizers_or_of_an_earlier_fit_is_not_named(tmp_path):
    trainer = fit(tmp_path / "a", Net(), save_on_exception=False)
    trainer.fit_loop.max_epochs = 3
    with pytest.raises(Broken) as caught:
        trainer.fit(Net(fail, at=(2, 0)), loader(), loader(shuffle=False))
    assert not any("To go on" in note for note in caught.value.__notes__)

    class Saving(Callback):
        def on_train_batch_start(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[Saving()], **off)
    with pytest.raises(Broken) as caught:
        trainer.fit(Net(fail, at=(0, 1)), loader(), loader(shuffle=False))
    assert not any("To go on" in note for note in caught.value.__notes__)


def test_a_checkpoint_that_was_removed_is_not_named(tmp_path):
    def remove_and_fail():
        for path in tmp_path.glob("*.ckpt"):
            path.unlink()
        fail()

    with pytest.raises(Broken) as caught:
        fit(tmp_path, Net(remove_and_fail, at=(1, 0)), save_on_exception=False)
    assert not any("To go on" in note for note in caught.value.__notes__)


def test_what_fails_after_ctrl_c_is_said(tmp_path, caplog):
    class Failing(Callback):
        def on_exception(self, trainer, pl_module, exception):
            raise Broken("while saving")

    caplog.set_level("INFO", logger="fulmen")
    with pytest.raises(SystemExit):
        fit(tmp_path, Net(press_it_twice, at=(0, 0)), Failing())
    assert told(caplog).splitlines()[1] == "While this was handled, Broken was raised: while saving"
