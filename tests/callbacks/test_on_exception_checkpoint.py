from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Callback, Trainer
from fulmen.callbacks import ModelCheckpoint, OnExceptionCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*goes on from the last checkpoint:UserWarning")


class Failure(Exception):
    """What ends the runs here."""


@pytest.fixture
def failing(scripted) -> Callable[..., Any]:
    """Makes a module that fails in a hook, in training before the step of that number."""

    def make(step: int = 6, hook: str = "training_step", error: type[BaseException] = Failure) -> Any:
        class Fails(scripted):
            pass

        def fail(self: Any, *args: Any) -> Any:
            if hook != "training_step" or self.trainer.global_step == step:
                raise error
            return super(Fails, self).training_step(*args)

        setattr(Fails, hook, fail)
        return Fails()

    return make


def test_the_name_of_the_file() -> None:
    callback = OnExceptionCheckpoint("folder")
    assert (callback.dirpath, callback.filename) == ("folder", "on_exception")
    assert callback.ckpt_path == os.path.join("folder", "on_exception.ckpt")
    assert OnExceptionCheckpoint(Path("folder"), "it").ckpt_path == os.path.join("folder", "it.ckpt")
    with pytest.raises(ValueError, match="expected a name without extension"):
        OnExceptionCheckpoint("folder", filename="")


@pytest.mark.parametrize(("error", "raised"), [(Failure, Failure), (KeyboardInterrupt, SystemExit)])
def test_an_exception_saves_and_the_next_fit_goes_on(fit, failing, scripted, tmp_path, error, raised) -> None:
    file = tmp_path / "on_exception.ckpt"
    with pytest.raises(raised):
        fit(failing(error=error), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    assert torch.load(file)["global_step"] == 6

    started: list[int] = []

    class Starts(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append(trainer.global_step)

    with pytest.warns(UserWarning, match=r"goes on from the last checkpoint.*ckpt_path=\"last\""):
        trainer = fit(scripted(), OnExceptionCheckpoint(tmp_path), Starts(), enable_checkpointing=True)
    assert started == [6]
    assert trainer.global_step == 12
    assert trainer.ckpt_path == str(file)
    assert not file.exists()


def test_the_resumed_run_is_the_run_that_was_not_interrupted(fit, failing, scripted, tmp_path) -> None:
    torch.manual_seed(1)
    whole = fit(scripted()).lightning_module
    torch.manual_seed(1)
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    resumed = fit(scripted(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True).lightning_module
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


def test_the_first_fit_starts_from_the_beginning(fit, scripted, tmp_path) -> None:
    trainer = fit(scripted(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    assert trainer.global_step == 12
    assert trainer.ckpt_path is None
    assert list(tmp_path.glob("*.ckpt")) == []
    assert [type(callback) for callback in trainer.callbacks] == [OnExceptionCheckpoint]


def test_the_newest_of_all_last_checkpoints_counts(fit, failing, scripted, tmp_path) -> None:
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path), ModelCheckpoint(tmp_path, save_last=True))
    assert (tmp_path / "last.ckpt").exists()
    callbacks = [OnExceptionCheckpoint(tmp_path), ModelCheckpoint(tmp_path, save_last=True)]
    os.utime(tmp_path / "last.ckpt", (0, 0))
    assert fit(scripted(), *callbacks).ckpt_path == str(tmp_path / "on_exception.ckpt")


def test_it_is_among_the_last_checkpoints_that_can_be_asked_for(fit, failing, scripted, tmp_path) -> None:
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path, "saved"), enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*goes on from the last checkpoint")
        trainer = fit(scripted(), OnExceptionCheckpoint(tmp_path, "saved"), enable_checkpointing=True, ckpt_path="last")
    assert trainer.ckpt_path == str(tmp_path / "saved.ckpt")
    with pytest.warns(UserWarning, match="there is no last checkpoint"):
        fit(scripted(), OnExceptionCheckpoint(tmp_path, "saved"), enable_checkpointing=True, ckpt_path="last")


def test_a_path_that_is_given_wins(fit, failing, scripted, tmp_path) -> None:
    first = fit(scripted(), max_epochs=1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    trainer = fit(
        scripted(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True, ckpt_path=tmp_path / "first.ckpt"
    )
    assert trainer.ckpt_path == str(tmp_path / "first.ckpt")


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "configure_optimizers"])
def test_a_run_that_fails_before_training_leaves_the_file_alone(fit, failing, tmp_path, hook: str) -> None:
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    before = (tmp_path / "on_exception.ckpt").read_bytes()
    with pytest.raises(Failure):
        fit(failing(hook=hook), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    assert (tmp_path / "on_exception.ckpt").read_bytes() == before


@pytest.mark.parametrize("fails", [True, False])
def test_so_do_other_runs(fit, failing, scripted, tmp_path, fails: bool) -> None:
    with pytest.raises(Failure):
        fit(failing(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    before = (tmp_path / "on_exception.ckpt").read_bytes()
    callback = OnExceptionCheckpoint(tmp_path)

    trainer = Trainer(accelerator="cpu", fast_dev_run=1, callbacks=callback, enable_progress_bar=False)
    try:
        trainer.fit(failing(step=0 if fails else 6), torch.ones(4, 1, 2), torch.ones(1, 1, 2))
        trainer.validate(failing(hook="validation_step") if fails else scripted(), torch.ones(1, 1, 2), verbose=False)
    except Failure:
        assert fails
    assert (tmp_path / "on_exception.ckpt").read_bytes() == before


def test_it_needs_checkpointing(fit, scripted, tmp_path) -> None:
    with pytest.raises(Exception, match="enable_checkpointing=False"):
        fit(scripted(), OnExceptionCheckpoint(tmp_path), enable_checkpointing=False)
