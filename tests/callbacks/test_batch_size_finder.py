"""BatchSizeFinder: a search at the start of a run, which then runs with the size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from fulmen.errors import MisconfigurationException
from fulmen.loggers import CSVLogger
from fulmen.strategies import SingleDeviceStrategy

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

METHODS = ["fit", "validate", "test", "predict"]


class Net(LightningModule):
    """Memory runs out from a batch size of 10 on; notes the batches of the run itself."""

    def __init__(self, batch_size=2):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.batch_size = batch_size
        self.notes = Notes()
        self.counter = 0

    def training_step(self, batch, batch_idx):
        self.counter += 1
        self.notes.add(self.trainer, len(batch))
        if len(batch) >= 10:
            raise RuntimeError("CUDA out of memory.")
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(20, 2), batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Notes:
    """Outside of what a probe puts back."""

    def __init__(self):
        self.run, self.probe = [], []

    def add(self, trainer, size):
        in_run = any(isinstance(callback, BatchSizeFinder) for callback in trainer.callbacks)
        (self.run if in_run else self.probe).append(size)


def trainer_with(*callbacks, **arguments):
    chosen = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    chosen |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_run_goes_on_with_the_size_that_was_found(method, mode):
    finder, module = BatchSizeFinder(mode=mode, margin=0.1), Net()
    trainer = trainer_with(finder, limit_val_batches=0 if method == "fit" else 1.0)
    results = getattr(trainer, method)(module)
    assert finder.optimal_batch_size == module.batch_size == 8
    assert module.notes.run == [8, 8, 4]
    assert module.counter == 3
    assert module.notes.probe[:6] == [2, 2, 2, 4, 4, 4]
    if method == "predict":
        assert len(results) == 3
    assert trainer.callbacks[0] is finder


def test_the_search_changes_nothing_but_the_size():
    def weights(*callbacks):
        torch.manual_seed(1)
        module = Net(batch_size=8)
        trainer_with(*callbacks, max_epochs=3).fit(module)
        return torch.cat([p.flatten() for p in module.parameters()])

    assert torch.equal(weights(BatchSizeFinder()), weights())


def test_the_validation_inside_fit_is_not_searched_again():
    finder, module = BatchSizeFinder(), Net()
    trainer_with(finder, limit_val_batches=1.0, num_sanity_val_steps=1).fit(module)
    assert module.notes.run == [8, 8, 8, 4, 8, 8, 4]
    # three training and three validation batches each of 2, 4 and 8, and one of 16
    assert module.notes.probe == [2] * 6 + [4] * 6 + [8, 8, 4, 8, 8, 4] + [16]


@pytest.mark.filterwarnings("ignore:The checkpoint was written by")
def test_together_with_other_callbacks_and_in_a_resumed_run(tmp_path):
    class Logging(Net):
        def __init__(self):
            super().__init__()
            self.lr = 0.1

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    def fit(max_epochs, ckpt_path=None):
        finders = [BatchSizeFinder(), LearningRateFinder(num_training_steps=15)]
        others = [ModelCheckpoint(save_last=True), EarlyStopping("loss", patience=9), LearningRateMonitor("step")]
        folder = {"default_root_dir": tmp_path, "logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
        trainer = trainer_with(
            *others, *finders, max_epochs=max_epochs, limit_val_batches=1.0, enable_checkpointing=True, **folder
        )
        module = Logging()
        trainer.fit(module, ckpt_path=ckpt_path)
        assert trainer.callbacks[:2] == finders
        assert module.batch_size == 8
        return trainer

    first = fit(max_epochs=1)
    assert first.global_step == 3
    resumed = fit(max_epochs=2, ckpt_path=first.checkpoint_callback.last_model_path)
    assert (resumed.global_step, resumed.current_epoch) == (6, 2)


def test_a_scheduler_that_asks_for_the_length_of_the_run_gets_the_new_one():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.total = self.trainer.estimated_stepping_batches
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, self.total)]

    module = Scheduled()
    trainer_with(BatchSizeFinder(), max_epochs=5).fit(module)
    assert module.total == 5 * 3
    assert len(module.notes.run) == 15


def test_the_size_may_be_in_the_datamodule():
    class Data(LightningDataModule):
        def __init__(self, size=2):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(torch.ones(20, 2), batch_size=self.hparams.size)

    module, data = Net(), Data()
    trainer_with(BatchSizeFinder(batch_arg_name="size")).fit(module, datamodule=data)
    assert (data.hparams.size, module.batch_size) == (8, 2)
    assert module.notes.run == [8, 8, 4]


def test_a_subclass_looks_at_the_start_of_epochs():
    class Again(BatchSizeFinder):
        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    module = Net(batch_size=5)
    trainer = trainer_with(Again(), max_epochs=2)
    trainer.fit(module)
    assert module.notes.run == [5, 5, 5, 5, 8, 8, 4]
    assert trainer.global_step == 7


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("method", METHODS)
def test_loaders_passed_to_the_call(method):
    with pytest.raises(MisconfigurationException, match=f"dataloaders passed to `{method}`"):
        getattr(trainer_with(BatchSizeFinder()), method)(Net(), DataLoader(torch.ones(4, 2)))


def test_no_attribute():
    module = Net()
    del module.batch_size
    with pytest.raises(MisconfigurationException, match="found no 'batch_size' in `Net`"):
        trainer_with(BatchSizeFinder()).fit(module)


def test_an_attribute_and_a_hyperparameter():
    module = Net()
    module.hparams["batch_size"] = 2
    with pytest.warns(UserWarning, match="is an attribute of `Net` and one of its hyperparameters"):
        trainer_with(BatchSizeFinder()).fit(module)
    assert module.batch_size == module.hparams["batch_size"] == 8


def test_several_loaders_in_evaluation():
    class Two(Net):
        def val_dataloader(self):
            return [self.train_dataloader(), self.train_dataloader()]

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pytest.fail("nothing should run")

    with pytest.raises(MisconfigurationException, match="one dataloader in `validate`; there are 2"):
        trainer_with(BatchSizeFinder(), limit_val_batches=1.0).validate(Two())


def test_several_processes():
    class Two(SingleDeviceStrategy):
        world_size = 2

    trainer = trainer_with(BatchSizeFinder(), strategy=Two("cpu"), accelerator="auto")
    with pytest.raises(MisconfigurationException, match="`BatchSizeFinder` works with one process; this trainer has 2"):
        trainer.fit(Net())


def test_it_does_nothing_in_a_fast_dev_run():
    finder, module = BatchSizeFinder(), Net()
    with pytest.warns(UserWarning, match="does nothing in a `fast_dev_run`"):
        trainer_with(finder, fast_dev_run=True).fit(module, DataLoader(torch.ones(4, 2)))
    assert finder.optimal_batch_size is None
    assert module.notes.probe == []


def test_settings_that_cannot_work():
    assert BatchSizeFinder.SUPPORTED_MODES == ("power", "binsearch")
    assert BatchSizeFinder.order == -1
    with pytest.raises(ValueError, match="`mode='linear'` is not known"):
        BatchSizeFinder(mode="linear")
    with pytest.raises(AssertionError, match="`margin=2` is not possible"):
        BatchSizeFinder(margin=2)
