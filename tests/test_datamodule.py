from __future__ import annotations

import pickle
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from fulmen.datahooks import CheckpointHooks, DataHooks
from fulmen.datamodule import LightningDataModule
from fulmen.errors import MisconfigurationException

LOADERS = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]


def dataset(size) -> TensorDataset:
    return TensorDataset(torch.arange(size))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(5))


@pytest.mark.parametrize("owner", [DataHooks(), LightningDataModule()])
@pytest.mark.parametrize("hook", LOADERS)
def test_a_loader_that_is_not_implemented(owner, hook):
    with pytest.raises(
        MisconfigurationException, match=rf"{type(owner).__name__}.{hook}` must be implemented"
    ) as caught:
        getattr(owner, hook)()
    assert caught.value.subject is owner


def test_the_other_hooks_do_nothing():
    hooks = LightningDataModule()
    assert hooks.prepare_data() is None
    assert hooks.setup("fit") is None
    assert hooks.teardown("fit") is None
    assert hooks.on_exception(ValueError()) is None
    assert hooks.state_dict() == {}
    assert hooks.load_state_dict({}) is None
    assert hooks.on_before_batch_transfer([1], 0) == [1]
    assert hooks.on_after_batch_transfer([1], 0) == [1]
    checkpoint = {"a": 1}
    CheckpointHooks().on_save_checkpoint(checkpoint)
    CheckpointHooks().on_load_checkpoint(checkpoint)
    assert checkpoint == {"a": 1}


def test_a_batch_is_moved_with_all_it_holds():
    pair = namedtuple("pair", ["x", "y"])
    batch = {"a": torch.zeros(1), "b": pair([torch.ones(2)], "text")}
    moved = DataHooks().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["a"].device.type == moved["b"].x[0].device.type == "meta"
    assert moved["b"].y == "text"


def test_attributes_before_a_trainer():
    class Careless(LightningDataModule):
        def __init__(self):
            self.x = 1  # no super().__init__()

    for datamodule in (LightningDataModule(), Careless()):
        assert datamodule.trainer is None
        assert datamodule.name is None
        assert datamodule.prepare_data_per_node
        assert not datamodule.allow_zero_length_dataloader_with_multiple_devices
        assert datamodule.hparams == {}


def test_arguments_that_nobody_takes_are_an_error():
    with pytest.raises(TypeError):
        LightningDataModule(batch_size=3)


def test_from_datasets_nests_as_given_and_shuffles_what_is_for_training():
    datamodule = LightningDataModule.from_datasets(
        [dataset(3), (dataset(4), Endless())], {"a": dataset(5)}, predict_dataset=dataset(6), batch_size=2
    )
    first, (second, third) = datamodule.train_dataloader()
    assert [type(each.sampler) for each in (first, second)] == [RandomSampler, RandomSampler]
    assert isinstance(third.dataset, Endless)
    assert first.batch_size == 2
    assert first.pin_memory
    assert isinstance(datamodule.val_dataloader()["a"].sampler, SequentialSampler)
    assert len(datamodule.predict_dataloader().dataset) == 6
    with pytest.raises(MisconfigurationException):
        datamodule.test_dataloader()
    assert len(pickle.loads(pickle.dumps(datamodule)).train_dataloader()) == 2


def test_from_datasets_passes_what_the_class_takes():
    class Sized(LightningDataModule):
        def __init__(self, batch_size, extra=0):
            super().__init__()
            self.given = batch_size, extra

    class Open(LightningDataModule):
        def __init__(self, **kwargs):
            super().__init__()
            self.given = kwargs

    assert Sized.from_datasets(dataset(3), batch_size=4, extra=5).given == (4, 5)
    assert Open.from_datasets(dataset(3), extra=5).given == {"batch_size": 1, "num_workers": 0, "extra": 5}
    with pytest.raises(TypeError, match="unknown"):
        Sized.from_datasets(dataset(3), unknown=5)


def test_str_says_how_much_data_there_are():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(dataset(10))

        def val_dataloader(self):
            return [DataLoader(dataset(3)), DataLoader(Endless())]

        def test_dataloader(self):
            return self.made_in_setup

    assert str(Data()).splitlines() == [
        "{Train dataloader: size=10}",
        "{Validation dataloader: 1. size=3 ; 2. size=NA}",
        "{Test dataloader: None}",
        "{Predict dataloader: None}",
    ]


def test_pickling_drops_the_trainer():
    datamodule = LightningDataModule()
    datamodule.trainer = object()
    datamodule.x = 1
    copied = pickle.loads(pickle.dumps(datamodule))
    assert copied.trainer is None
    assert copied.x == 1
