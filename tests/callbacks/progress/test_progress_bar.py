from __future__ import annotations

import re
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import fulmen
from fulmen.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return repeat(torch.zeros(4))


class Totals(ProgressBar):
    """Takes down the total at the start of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append((self.total_train_batches, self.total_val_batches))


def trainer_with(bar: ProgressBar, **settings: Any) -> fulmen.Trainer:
    off = dict.fromkeys(["logger", "enable_checkpointing", "enable_model_summary"], False)
    return fulmen.Trainer(accelerator="cpu", callbacks=bar, num_sanity_val_steps=0, **{**off, **settings})


SIZED = DataLoader(torch.zeros(4, 4))
ENDLESS = DataLoader(Endless())
DATA = {"four": SIZED, "endless": ENDLESS}


@pytest.mark.parametrize(
    ("data", "settings", "totals"),
    [
        ("four", {"max_epochs": 2}, [4, 4]),
        ("four", {"max_steps": 6}, [4, 2]),
        ("four", {"max_steps": 6, "max_epochs": 5}, [4, 2]),
        ("four", {"max_steps": 3, "accumulate_grad_batches": 2}, [4, 2]),
        ("endless", {"max_steps": 3}, [3]),
        ("endless", {"max_steps": 3, "max_epochs": 2}, [3]),
        ("endless", {"max_steps": 3, "accumulate_grad_batches": 2}, [6]),
        ("endless", {"max_steps": 5, "limit_train_batches": 3}, [3, 2]),
        ("endless", {"max_epochs": 1, "max_time": {"seconds": 0.01}}, [float("inf")]),
    ],
    ids=repr,
)
def test_the_total_of_an_epoch_is_what_will_be_run(data, settings, totals):
    bar = Totals()
    trainer_with(bar, **settings).fit(Net(), DATA[data])
    assert [train for train, _ in bar.seen] == totals


def test_an_epoch_without_validation_has_no_validation_batches():
    # the loaders are made by the first validation: before it their length is not known
    bar = Totals()
    trainer_with(bar, max_epochs=4, check_val_every_n_epoch=2).fit(Net(), SIZED, [SIZED, SIZED])
    assert [val for _, val in bar.seen] == [0, 0, 0, 8]


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_a_bar_of_an_endless_stream_counts_to_the_last_step(kind, capsys):
    trainer_with(kind(), max_steps=3, max_epochs=7).fit(Net(), ENDLESS)
    out = capsys.readouterr().out
    assert "3/3" in out
    assert not re.search(r"Epoch.*(inf|[123]/\?|--)", out)


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_zero_has_a_bar(kind, rank):
    bar = kind()
    bar.setup(SimpleNamespace(is_global_zero=rank == 0), None, "fit")
    assert bar.is_disabled is (rank > 0)
    assert bar.listens("on_train_batch_end", SimpleNamespace(is_global_zero=rank == 0)) is (rank == 0)
