"""Tuner: what it refuses, and where it takes its data from."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.callbacks import BatchSizeFinder, LearningRateFinder
from fulmen.errors import MisconfigurationException
from fulmen.strategies import SingleDeviceStrategy
from fulmen.tuner import Tuner
from fulmen.tuner.lr_finder import _LRFinder

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

LOADER = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "validate"}, MisconfigurationException, r"lr_find\(method='validate'\)"),
        ({"dataloaders": LOADER}, MisconfigurationException, "`dataloaders` for 'fit'"),
        ({"mode": "power"}, ValueError, "`mode='power'` is not known. Type one of: 'linear', 'exponential'"),
        ({"train_dataloaders": LOADER, "datamodule": "a datamodule"}, MisconfigurationException, "Pass one of them"),
    ],
)
def test_what_lr_find_refuses(make, net, arguments, error, message):
    module = net()
    with pytest.raises(error, match=message):
        Tuner(make()).lr_find(module, **arguments)
    assert module.sizes.run == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "train"}, ValueError, "Type one of: 'fit', 'validate', 'test', 'predict'"),
        ({"dataloaders": LOADER}, MisconfigurationException, "`dataloaders` for 'fit'"),
        ({"method": "test", "train_dataloaders": LOADER}, MisconfigurationException, "Pass `dataloaders`"),
        ({"method": "test", "val_dataloaders": LOADER}, MisconfigurationException, "Pass `dataloaders`"),
        ({"train_dataloaders": LOADER}, MisconfigurationException, "dataloaders passed to `fit`"),
        ({"val_dataloaders": LOADER}, MisconfigurationException, "dataloaders passed to `fit`"),
        ({"method": "predict", "dataloaders": LOADER}, MisconfigurationException, "dataloaders passed to `predict`"),
    ],
)
def test_what_scale_batch_size_refuses(make, net, arguments, error, message):
    module = net()
    with pytest.raises(error, match=message):
        Tuner(make()).scale_batch_size(module, **arguments)
    assert module.sizes.run == []


def test_a_module_is_needed(make):
    with pytest.raises(TypeError, match=r"expected a `fulmen.LightningModule`"):
        Tuner(make()).lr_find(torch.nn.Linear(1, 1))


def test_the_same_finder_among_the_callbacks(make, net):
    with pytest.raises(ValueError, match="has a `LearningRateFinder` among its callbacks"):
        Tuner(make(callbacks=[LearningRateFinder()])).lr_find(net())
    with pytest.raises(ValueError, match="has a `BatchSizeFinder` among its callbacks"):
        Tuner(make(callbacks=[BatchSizeFinder()])).scale_batch_size(net())
    assert Tuner(make(callbacks=[BatchSizeFinder()])).lr_find(net(), num_training=2) is not None


def test_several_processes(make, net):
    class Two(SingleDeviceStrategy):
        world_size = 2

    with pytest.raises(ValueError, match=r"works with one process; this trainer has 2.*Trainer\(devices=1\)"):
        Tuner(make(strategy=Two("cpu"), accelerator="auto")).scale_batch_size(net())


def test_nothing_is_done_in_a_fast_dev_run(make, net):
    module = net()
    tuner = Tuner(make(fast_dev_run=True))
    with pytest.warns(UserWarning, match="learning-rate finder does nothing in a `fast_dev_run`"):
        assert tuner.lr_find(module) is None
    with pytest.warns(UserWarning, match="batch-size finder does nothing in a `fast_dev_run`"):
        assert tuner.scale_batch_size(module) is None
    assert module.sizes.run == []


def test_data_come_from_where_fit_would_take_them(make, net, data):
    loader = DataLoader(TensorDataset(torch.ones(6, 2)), batch_size=6)
    sizes = {}
    for name, arguments in {
        "module": {},
        "loader": {"train_dataloaders": loader, "val_dataloaders": loader},
        "datamodule": {"datamodule": data(batch_size=3)},
        "datamodule instead of loaders": {"train_dataloaders": data(batch_size=2)},
    }.items():
        module = net()
        found = Tuner(make()).lr_find(module, num_training=2, **arguments)
        assert isinstance(found, _LRFinder)
        sizes[name] = module.sizes.seen[0]
    assert sizes == {"module": 4, "loader": 6, "datamodule": 3, "datamodule instead of loaders": 2}


def test_tune_then_fit(make, net):
    trainer, module = make(limit_train_batches=2, limit_val_batches=1), net(limit=32)
    tuner = Tuner(trainer)
    assert tuner.scale_batch_size(module) == 16
    found = tuner.lr_find(module, num_training=40)
    assert module.hparams.lr == found.suggestion()
    module.sizes.seen.clear()
    trainer.fit(module)
    assert set(module.sizes.seen) == {16}
    assert trainer.global_step == 4
    assert trainer.optimizers[0].defaults["lr"] == found.suggestion()
