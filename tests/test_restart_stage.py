"""Where a fit goes on."""

import pytest
from torch.utils.data import DataLoader

from fulmen import Callback, Trainer
from fulmen.demos.boring_classes import BoringModel, RandomDataset
from fulmen.states import RestartStage

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}


class SaveAt(Callback):
    def __init__(self, hook, path, count=1):
        self.path, self.count = path, count
        setattr(self, hook, self.save)

    def save(self, trainer, *args):
        self.count -= 1
        if self.count == 0:
            trainer.save_checkpoint(self.path)


def fit(tmp_path, hook, count=1, epochs=2, **settings):
    path = tmp_path / "a.ckpt"
    loaders = [DataLoader(RandomDataset(32, 3)) for _ in range(2)]
    Trainer(max_epochs=epochs, callbacks=SaveAt(hook, path, count), **QUIET).fit(BoringModel(), *loaders)
    again = Trainer(max_epochs=epochs + 1, **QUIET)
    again.fit(BoringModel(), *loaders, ckpt_path=path)
    assert again.current_epoch == epochs + 1
    return again.fit_loop.restart_stage


@pytest.mark.parametrize(
    ("hook", "count", "stage"),
    [
        ("on_train_start", 1, RestartStage.RESTARTED_ON_EPOCH_START),
        ("on_train_batch_end", 1, RestartStage.RESTARTED_ON_TRAIN_BATCH_END),
        ("on_train_batch_end", 3, RestartStage.RESTARTED_ON_LAST),
        ("on_validation_batch_end", 1, RestartStage.RESTARTED_MID_EVALUATION),
        ("on_validation_end", 1, RestartStage.RESTARTED_MID_EPOCH),
        ("on_train_epoch_end", 1, RestartStage.RESTARTED_ON_EPOCH_END),
        ("on_train_end", 1, RestartStage.RESUMED_ON_EPOCH_END),
    ],
)
def test_where_a_fit_goes_on(tmp_path, hook, count, stage):
    assert fit(tmp_path, hook, count) == stage


def test_a_fit_that_begins_has_none():
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 2)), DataLoader(RandomDataset(32, 2)))
    assert trainer.fit_loop.restart_stage == "none"
