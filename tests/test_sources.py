"""Where the data of a run come from, and how a batch gets to its device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fulmen
from fulmen.data import CombinedLoader
from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.loggers import CSVLogger
from fulmen.strategies import SingleDeviceStrategy


def batches(number: int = 1, **arguments: Any) -> Any:
    """Batches of one row; the rows of a loader of n batches hold n."""
    rows = torch.full((number, 2), float(number))
    return DataLoader(rows, **{"batch_size": 1, **arguments})  # type: ignore[arg-type]


class Ready:
    """Gives batches that are there already."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


class Net(fulmen.LightningModule):
    """Notes the first number of each batch, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[Any] = []

    def note(self, batch: Any) -> None:
        if not isinstance(batch, Tensor):
            self.seen.append(batch)
        else:
            self.seen.append(int(batch.flatten()[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note(batch)
        return self.layer(torch.ones(1, 2)).mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithLoaders(Net):
    def train_dataloader(self) -> Any:
        return batches(1)

    def val_dataloader(self) -> Any:
        return batches(2)

    def test_dataloader(self) -> Any:
        return batches(3)

    def predict_dataloader(self) -> Any:
        return batches(4)


class Data(fulmen.LightningDataModule):
    def train_dataloader(self) -> Any:
        return batches(5)

    def val_dataloader(self) -> Any:
        return batches(6)


@pytest.fixture
def quiet(tmp_path: Path) -> Any:
    def make(**arguments: Any) -> fulmen.Trainer:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
        chosen = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path, **dict.fromkeys(off, False)}
        return fulmen.Trainer(**{**chosen, **arguments})

    return make


# ---------------------------------------------------------------------------------------------------- from where


@pytest.mark.parametrize(("call", "number"), [("fit", 1), ("validate", 2), ("test", 3), ("predict", 4)])
@pytest.mark.filterwarnings("ignore:`predict_step` returned None")
def test_the_module_has_its_own_data(quiet: Any, call: str, number: int) -> None:
    module = WithLoaders()
    getattr(quiet(limit_val_batches=0 if call == "fit" else 1.0), call)(module)
    assert module.seen == [number] * number


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
@pytest.mark.filterwarnings("ignore:`predict_step` returned None")
def test_given_loaders_come_first(quiet: Any, call: str) -> None:
    module = WithLoaders()
    getattr(quiet(), call)(module, dataloaders=batches(7))
    assert module.seen == [7] * 7


def test_each_stage_of_fit_has_its_own_source(quiet: Any) -> None:
    module = WithLoaders()
    quiet().fit(module, batches(3))
    assert module.seen == [3, 3, 3, 2, 2]
    module = WithLoaders()
    quiet().fit(module, val_dataloaders=batches(3))
    assert module.seen == [1, 3, 3, 3]


def test_a_datamodule_is_the_source_of_all_stages(quiet: Any) -> None:
    module, datamodule, trainer = WithLoaders(), Data(), quiet()
    trainer.fit(module, datamodule=datamodule)
    assert module.seen == [5] * 5 + [6] * 6
    assert trainer.datamodule is datamodule
    assert datamodule.trainer is trainer
    with pytest.raises(MisconfigurationException, match="define `test_dataloader` in `Data`"):
        trainer.test(module, datamodule=datamodule)


def test_a_run_without_a_datamodule_does_not_use_the_former(quiet: Any) -> None:
    module, datamodule, trainer = WithLoaders(), Data(), quiet()
    trainer.validate(module, datamodule=datamodule)
    module.seen.clear()
    trainer.validate(module)
    assert module.seen == [2, 2]
    assert trainer.datamodule is datamodule


def test_a_datamodule_lives_as_long_as_a_run(quiet: Any) -> None:
    calls: list[Any] = []

    class Notes(Data):
        def prepare_data(self) -> None:
            calls.append("prepare")

        def setup(self, stage: str) -> None:
            calls.append(("setup", str(stage)))

        def teardown(self, stage: str) -> None:
            calls.append(("teardown", str(stage)))

        def on_exception(self, exception: BaseException) -> None:
            calls.append(type(exception))

    trainer, datamodule = quiet(), Notes()
    trainer.fit(Net(), datamodule=datamodule)
    trainer.validate(Net(), datamodule=datamodule)
    assert calls == [
        *("prepare", ("setup", "fit"), ("teardown", "fit")),
        *("prepare", ("setup", "validate"), ("teardown", "validate")),
    ]
    calls.clear()
    module = Net()
    module.training_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        quiet().fit(module, datamodule=datamodule)
    assert calls == ["prepare", ("setup", "fit"), ZeroDivisionError]


def test_loaders_that_are_none(quiet: Any) -> None:
    module = Net()
    module.train_dataloader = lambda: None
    module.val_dataloader = lambda: batches(1)
    with pytest.raises(TypeError, match=r"`Net.train_dataloader` returned None; expected a dataloader"):
        quiet().fit(module)


def test_loaders_that_cannot_be_iterated(quiet: Any) -> None:
    module = Net()
    module.val_dataloader = lambda: batches(1)
    with pytest.raises(TypeError, match="The train loader 3 of type int is not iterable"):
        quiet().fit(module, 3)


def test_any_iterable_is_a_loader(quiet: Any) -> None:
    module = WithLoaders()
    quiet(limit_val_batches=0).fit(module, Ready(torch.ones(1, 2), torch.zeros(1, 2)))
    assert module.seen == [1, 0]


def test_the_users_loaders_can_be_read_back(quiet: Any) -> None:
    train, val, test = {"a": batches(1), "b": batches(2)}, [batches(1), batches(2)], batches(3)
    module, trainer = Net(), quiet()
    assert (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders) == (None, None, None)
    trainer.fit(module, train, val)
    assert {name: len(loader) for name, loader in trainer.train_dataloader.items()} == {"a": 1, "b": 2}
    assert [len(loader) for loader in trainer.val_dataloaders] == [1, 2]
    assert (trainer.num_training_batches, trainer.num_val_batches) == (2, [1, 2])
    trainer.test(module, test, verbose=False)
    assert trainer.test_dataloaders is test


def test_a_strategy_may_process_each_loader(quiet: Any) -> None:
    class Processes(SingleDeviceStrategy):
        def process_dataloader(self, loader: Any) -> Any:
            return batches(9) if len(loader) == 2 else loader

    for train in ([batches(1), batches(2)], CombinedLoader([batches(1), batches(2)], "min_size")):
        module = Net()
        quiet(strategy=Processes(device="cpu"), limit_val_batches=0, max_steps=1).fit(module, train, batches(1))
        assert [[int(part[0, 0]) for part in batch] for batch in module.seen] == [[1, 9]]


@pytest.mark.parametrize(("batches_of_epoch", "every", "warned"), [(3, 50, True), (3, 3, False), (3, 0, False)])
def test_fewer_batches_than_the_logging_interval(
    quiet: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder, batches_of_epoch: int, every: int, warned: bool
) -> None:
    trainer = quiet(logger=CSVLogger(tmp_path), log_every_n_steps=every, limit_val_batches=0)
    trainer.fit(Net(), batches(batches_of_epoch), batches(1))
    found = [warning for warning in recwarn if issubclass(warning.category, PossibleUserWarning)]
    assert len(found) == warned
    assert all("3 training batches, less than `Trainer(log_every_n_steps=50)`" in str(w.message) for w in found)


# ---------------------------------------------------------------------------------------------------- transfer


@dataclass
class Sample:
    x: Tensor
    name: str


class Moves:
    """Something with a `to` of its own."""

    device: Any = None

    def to(self, device: Any) -> Moves:
        moved = Moves()
        moved.device = device
        return moved


@pytest.mark.parametrize(
    "batch",
    [
        [torch.ones(2), "text", 3],
        {"a": (torch.ones(2), None), "b": [torch.zeros(1)]},
        Sample(torch.ones(3), "n"),
        "text",
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_keeps_its_form(quiet: Any, batch: Any) -> None:
    module = Net()
    quiet().validate(module, Ready(batch), verbose=False)
    (seen,) = module.seen
    assert type(seen) is type(batch)
    assert repr(seen) == repr(batch)


def test_objects_move_themselves(quiet: Any) -> None:
    module = Net()
    quiet().validate(module, Ready([Moves()]), verbose=False)
    assert module.seen[0][0].device == torch.device("cpu")


class TransferHooks:
    """The three hooks, which write what they are called with."""

    calls: list[Any]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append((type(self).__name__, "before", batch.dtype, dataloader_idx))
        return batch + 1

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        self.calls.append((type(self).__name__, "to", device, dataloader_idx))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)  # type: ignore[misc]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append((type(self).__name__, "after", batch.dtype, dataloader_idx))
        return batch * 10


class Transfers(TransferHooks, Net):
    pass


class TransfersData(TransferHooks, Data):
    pass


CPU = torch.device("cpu")


def hooks_of(name: str, dtype: torch.dtype, loader: int) -> list[Any]:
    return [(name, "before", dtype, loader), (name, "to", CPU, loader), (name, "after", dtype, loader)]


def test_hooks_of_the_transfer(quiet: Any) -> None:
    module = Transfers()
    module.calls = []
    quiet().validate(module, [batches(1), batches(1)], verbose=False)
    assert module.seen == [20, 20]
    assert module.calls == hooks_of("Transfers", torch.float32, 0) + hooks_of("Transfers", torch.float32, 1)


def test_the_precision_converts_before_the_hooks(quiet: Any) -> None:
    module = Transfers()
    module.calls = []
    quiet(precision="64-true").validate(module, batches(1), verbose=False)
    assert module.calls == hooks_of("Transfers", torch.float64, 0)


def test_the_hooks_of_a_datamodule(quiet: Any) -> None:
    module, datamodule = Net(), TransfersData()
    datamodule.calls = []
    quiet(limit_val_batches=1).validate(module, datamodule=datamodule, verbose=False)
    assert datamodule.calls == hooks_of("TransfersData", torch.float32, 0)
    assert module.seen == [70]


def test_the_hooks_of_a_datamodule_win(quiet: Any) -> None:
    module, datamodule = Transfers(), TransfersData()
    module.calls = datamodule.calls = []
    with pytest.warns(UserWarning, match="Both .* the datamodule's is used") as warned:
        quiet(limit_val_batches=1).validate(module, datamodule=datamodule, verbose=False)
    assert len(warned) == 3
    assert datamodule.calls == hooks_of("TransfersData", torch.float32, 0)


def test_the_hooks_of_the_module_with_a_datamodule(quiet: Any) -> None:
    module = Transfers()
    module.calls = []
    with pytest.warns(UserWarning, match="is overridden in the module. It is used") as warned:
        quiet(limit_val_batches=1).validate(module, datamodule=Data(), verbose=False)
    assert len(warned) == 3
    assert module.calls == hooks_of("Transfers", torch.float32, 0)


def test_a_strategy_may_bring_the_batch(quiet: Any) -> None:
    class Brings(SingleDeviceStrategy):
        def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
            return super().batch_to_device(batch * 3, device, dataloader_idx)

    module = Transfers()
    module.calls = []
    quiet(strategy=Brings(device="cpu")).validate(module, batches(1), verbose=False)
    assert module.seen == [60]
    assert [call[1] for call in module.calls] == ["before", "to", "after"]


def test_nothing_can_be_logged_while_data_are_made(quiet: Any) -> None:
    module = Net()
    module.val_dataloader = lambda: module.log("a", 1.0)
    with pytest.raises(MisconfigurationException, match="in `val_dataloader`"):
        quiet().validate(module)


@pytest.mark.parametrize(("batches_of", "short"), [((4, 100), "train"), ((100, 4), "val")])
def test_a_limit_by_overfit_batches_is_named_as_such(quiet: Any, batches_of: tuple[int, int], short: str) -> None:
    train, val = map(batches, batches_of)
    message = f"The {short} loader is too short: `overfit_batches=0.1` of 4 batches leaves none.*`overfit_batches=0.25`"
    with pytest.raises(MisconfigurationException, match=message):
        quiet(overfit_batches=0.1).fit(Net(), train, val)
