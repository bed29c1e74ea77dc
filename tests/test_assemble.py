from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EarlyStopping
from fulmen.errors import MisconfigurationException

OFF = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


class Net(fulmen.LightningModule):
    def __init__(self, callbacks: Any = ()) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.callbacks = callbacks

    def configure_callbacks(self) -> Any:
        return self.callbacks

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x"], r"was given 'x' of str, expected a `Callback`, or several in a list"),
        ("early_stopping", r"was given 'early_stopping' of str, expected a `Callback`"),
        (3, "was given 3 of int"),
        ([None], "was given None of NoneType"),
        ([fulmen.Callback(), [EarlyStopping("x")]], r"was given \[<.*EarlyStopping.*>\] of list"),
        (EarlyStopping, r"was given the class EarlyStopping, expected an object: write `EarlyStopping\(\)`"),
    ],
    ids=["name in a list", "name", "number", "none", "list", "class"],
)
def test_what_is_no_callback_is_refused_at_once(given, message):
    with pytest.raises(MisconfigurationException, match=r"`Trainer\(callbacks=...\)` " + message):
        fulmen.Trainer(callbacks=given, accelerator="cpu", **OFF)


def test_what_is_no_callback_is_refused_from_the_module_too():
    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=1, **OFF)
    with pytest.raises(MisconfigurationException, match=r"`Net.configure_callbacks` was given 3 of int"):
        trainer.fit(Net([3]), DataLoader(torch.ones(1, 2)))


def test_an_object_with_a_hook_is_a_callback():
    class Counts:
        batches = 0

        def on_train_batch_end(self, *arguments: Any) -> None:
            self.batches += 1

    counts = Counts()
    fulmen.Trainer(accelerator="cpu", max_epochs=1, callbacks=counts, **OFF).fit(Net(), DataLoader(torch.ones(3, 2)))
    assert counts.batches == 3


class Plain(fulmen.Callback): ...


class Special(Plain): ...


@pytest.mark.parametrize(
    ("given", "configured", "expected"),
    [
        ([Plain], [Plain], ["Plain"]),
        ([Plain], [Special], ["Special"]),
        ([Special], [Plain], ["Special", "Plain"]),
        ([fulmen.Callback, Plain], [Special], ["Callback", "Special"]),
        ([Plain], [], ["Plain"]),
        ([], [Special, Plain], ["Special", "Plain"]),
    ],
    ids=str,
)
def test_callbacks_of_the_module_take_the_place_of_their_kind(given, configured, expected):
    module = Net([kind() for kind in configured])
    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=0, callbacks=[kind() for kind in given], **OFF)
    for _ in range(2):
        trainer.fit(module, DataLoader(torch.ones(1, 2)))
        assert [type(callback).__name__ for callback in trainer.callbacks] == expected
    assert all(callback in trainer.callbacks for callback in module.callbacks)


def test_one_callback_of_the_module_needs_no_list():
    trainer, module = fulmen.Trainer(accelerator="cpu", max_epochs=0, **OFF), Net(Plain())
    trainer.fit(module, DataLoader(torch.ones(1, 2)))
    assert trainer.callbacks == [module.callbacks]


def test_callbacks_can_log_as_the_module_does():
    seen = []

    class Looks(fulmen.Callback):
        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            seen.append((self.log == module.log, self.log_dict == module.log_dict))

    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=0, callbacks=[Looks()], **OFF)
    trainer.fit(Net(), DataLoader(torch.ones(1, 2)))
    assert seen == [(True, True)]
