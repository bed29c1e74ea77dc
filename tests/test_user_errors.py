"""Errors teach: for each mistake that is easily made, the exception says what was given, what can be, what to type.

One row is one mistake: how it is made, the exception, and what its message has to say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fulmen
from fulmen import Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from fulmen.errors import LossError, MisconfigurationException

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(fulmen.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.ones(4, 2)


class Counting(fulmen.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}


def loader() -> DataLoader[Tensor]:
    return DataLoader(torch.ones(4, 2))  # type: ignore[arg-type]


def quiet(**arguments: Any) -> Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**chosen, **arguments})


def having(**methods: Any) -> Net:
    """A module with methods of its own."""
    return type("Own", (Net,), methods)()


def lacking(*names: str) -> fulmen.LightningModule:
    """A module without these methods."""
    kept = {name: value for name, value in vars(Net).items() if name not in names}
    return type("Own", (fulmen.LightningModule,), {"__init__": lambda self: bare(self), **_plain(kept)})()


def _plain(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kept.items() if not name.startswith("__")}


def bare(module: fulmen.LightningModule) -> None:
    fulmen.LightningModule.__init__(module)
    module.layer = nn.Linear(2, 1)


def fit(module: Any = None, train: Any = None, val: Any = None, *callbacks: Any, **arguments: Any) -> None:
    trainer = quiet(callbacks=list(callbacks), **arguments)
    trainer.fit(Net() if module is None else module, loader() if train is None else train, val or loader())


def of_another_package() -> Any:
    return type("LightningModule", (nn.Module,), {"__module__": "lightning.pytorch.core.module"})()


def plateau(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "accuracy"}}


def manual(self: Any) -> None:
    Net.__init__(self)
    self.automatic_optimization = False


Misconfigured = MisconfigurationException
Row = tuple[Callable[[], Any], type[Exception], list[str]]

ARGUMENTS: dict[str, Row] = {
    "max_epochs=-2": (
        lambda: Trainer(max_epochs=-2),
        Misconfigured,
        [r"max_epochs=-2", "at least 0", "-1 for no limit"],
    ),
    "max_steps=-5": (lambda: Trainer(max_steps=-5), Misconfigured, [r"max_steps=-5", "-1 for no limit"]),
    "accumulate 0": (
        lambda: Trainer(accumulate_grad_batches=0),
        Misconfigured,
        [r"accumulate_grad_batches=0", "at least 1"],
    ),
    "accumulate schedule": (
        lambda: Trainer(accumulate_grad_batches={0: 2}),  # type: ignore[arg-type]
        Misconfigured,
        ["accumulate_grad_batches={0: 2}", "GradientAccumulationScheduler"],
    ),
    "limit 1.5": (
        lambda: Trainer(limit_train_batches=1.5),
        Misconfigured,
        ["limit_train_batches=1.5", "an int", "0.0 to 1.0"],
    ),
    "interval 1.5": (lambda: Trainer(val_check_interval=1.5), Misconfigured, ["val_check_interval=1.5", "DD:HH:MM:SS"]),
    "interval over epochs": (
        lambda: Trainer(val_check_interval=0.5, check_val_every_n_epoch=None),
        Misconfigured,
        ["val_check_interval=0.5, check_val_every_n_epoch=None", "an int"],
    ),
    "fast_dev_run -1": (lambda: Trainer(fast_dev_run=-1), Misconfigured, ["fast_dev_run=-1", "True"]),
    "clip 'norm'": (lambda: Trainer(gradient_clip_val="1"), TypeError, ["gradient_clip_val='1'", "a number or None"]),  # type: ignore[arg-type]
    "clip algorithm": (
        lambda: Trainer(gradient_clip_algorithm="l2"),
        Misconfigured,
        ["algorithm='l2'", "'norm' or 'value'"],
    ),
    "accelerator": (lambda: Trainer(accelerator="gpus"), ValueError, ["gpus", "'?cpu'?"]),
    "strategy": (lambda: Trainer(accelerator="cpu", strategy="dpp"), ValueError, ["dpp", "ddp|auto"]),
    "precision": (lambda: Trainer(accelerator="cpu", precision="fp16"), ValueError, ["fp16", "16-mixed"]),
    "devices": (
        lambda: Trainer(accelerator="cpu", devices="all of them"),
        TypeError,
        ["'all of them'", "an int > 0", "devices=1"],
    ),
    "barebones": (
        lambda: Trainer(barebones=True, logger=True),
        ValueError,
        ["barebones=True", "logger=True", "[Ll]eave"],
    ),
    "unknown argument": (lambda: Trainer(gpus=2), TypeError, ["gpus"]),  # type: ignore[call-arg]
    "a callback's class": (
        lambda: quiet(callbacks=[Counting]),
        Misconfigured,
        ["the class Counting", r"write `Counting\(\)`"],
    ),
    "two of one key": (
        lambda: quiet(callbacks=[Counting(), Counting()]),
        RuntimeError,
        ["'Counting'", "state_key", "return f"],
    ),
    "two bars": (
        lambda: quiet(callbacks=[RichProgressBar(), RichProgressBar()], enable_progress_bar=True),
        Misconfigured,
        ["2 progress bars", "RichProgressBar, RichProgressBar", "Keep one"],
    ),
    "a bar that is off": (
        lambda: quiet(callbacks=[RichProgressBar()]),
        Misconfigured,
        ["enable_progress_bar=False", "Remove one"],
    ),
    "a checkpoint that is off": (
        lambda: quiet(callbacks=[ModelCheckpoint()]),
        Misconfigured,
        ["enable_checkpointing=False", "Remove one"],
    ),
}

ENTRY: dict[str, Row] = {
    "no training_step": (
        lambda: fit(lacking("training_step")),
        Misconfigured,
        ["`training_step`", "`Own`", r"def training_step\(self"],
    ),
    "no configure_optimizers": (
        lambda: fit(lacking("configure_optimizers")),
        Misconfigured,
        ["`configure_optimizers`", "return torch.optim.AdamW"],
    ),
    "no test_step": (lambda: quiet().test(Net(), loader()), Misconfigured, ["`test_step`", r"def test_step\(self"]),
    "no train data": (
        lambda: quiet().fit(Net()),
        Misconfigured,
        ["no train data", "Pass dataloaders", "train_dataloader"],
    ),
    "no val data": (lambda: quiet().validate(Net()), Misconfigured, ["no val data", "val_dataloader"]),
    "loader is None": (
        lambda: quiet().fit(having(train_dataloader=lambda self: None)),
        TypeError,
        ["Own.train_dataloader` returned None", "a dataloader"],
    ),
    "loader is a number": (lambda: fit(train=3), TypeError, ["3 of type int", "not iterable", r"DataLoader\(dataset"]),
    "a class": (lambda: fit(Net), TypeError, ["the class Net", r"`Net\(\.\.\.\)`"]),
    "a plain module": (lambda: fit(nn.Linear(2, 1)), TypeError, ["Linear", r"class Task\(fulmen.LightningModule\)"]),
    "a module of another package": (
        lambda: fit(of_another_package()),
        TypeError,
        ["another package", "from fulmen import Lightning"],
    ),
    "no module": (lambda: quiet().validate(), TypeError, ["without a model", r"trainer.validate\(model\)"]),
    "data twice": (
        lambda: quiet().fit(Net(), loader(), datamodule=Data()),
        Misconfigured,
        ["dataloaders and a datamodule", "Pass one"],
    ),
    "no datamodule": (
        lambda: quiet().fit(Net(), datamodule=loader()),
        TypeError,
        ["given DataLoader", "`LightningDataModule`"],
    ),
    "a hook of 1.x": (
        lambda: fit(having(validation_epoch_end=lambda self, outputs: None)),
        NotImplementedError,
        ["Own.validation_epoch_end", "1.x", r"on_validation_epoch_end\(self\)"],
    ),
    "optimizer_idx": (
        lambda: fit(having(training_step=lambda self, batch, batch_idx, optimizer_idx: None)),
        RuntimeError,
        ["optimizer_idx", "automatic_optimization = False"],
    ),
    "clipping by hand": (
        lambda: fit(having(__init__=manual), gradient_clip_val=1.0),
        Misconfigured,
        ["gradient_clip_val=1.0", "manual", "clip_gradients"],
    ),
    "no loader index": (
        lambda: fit(val=[loader(), loader()]),
        RuntimeError,
        ["several dataloaders", "dataloader_idx", "dataloader_idx=0"],
    ),
    "two optimizers": (
        lambda: fit(having(configure_optimizers=lambda self: [torch.optim.SGD(self.parameters()) for _ in range(2)])),
        (RuntimeError, Misconfigured),  # type: ignore[dict-item]
        ["automatic_optimization = False"],
    ),
}

INTERVALS: dict[str, Row] = {
    "beyond the epoch": (
        lambda: fit(val_check_interval=5),
        ValueError,
        ["val_check_interval=5", "4 training batches", "every_n_epoch=None"],
    ),
    "fraction of what is not known": (
        lambda: fit(train=DataLoader(Stream()), val_check_interval=0.5),
        Misconfigured,
        ["val_check_interval=0.5", "length", "an int"],
    ),
    "limit of what is not known": (
        lambda: fit(train=DataLoader(Stream()), limit_train_batches=0.5),
        Misconfigured,
        ["limit_train_batches=0.5", "length", "limit_train_batches=10"],
    ),
    "a limit that leaves nothing": (
        lambda: fit(limit_train_batches=0.1),
        Misconfigured,
        ["0.1` of 4 batches", "leaves none", "0.25"],
    ),
}

LOSSES: dict[str, Row] = {
    "a number": (
        lambda: fit(having(training_step=lambda self, batch, batch_idx: 1.0)),
        LossError,
        ["Own.training_step` returned float", "the loss"],
    ),
    "detached": (
        lambda: fit(having(training_step=lambda self, batch, batch_idx: self.layer(batch).sum().detach())),
        LossError,
        ["batch 0", "does not require grad", r"\.detach\(\)"],
    ),
    "no loss in a dict": (
        lambda: fit(having(training_step=lambda self, batch, batch_idx: {"los": 1})),
        LossError,
        [r"keys \['los'\]", '"loss"'],
    ),
}

MONITORS: dict[str, Row] = {
    "early stopping": (
        lambda: fit(None, None, None, EarlyStopping("accuracy")),
        RuntimeError,
        ["accuracy", "val_loss", r"self\.log\("],
    ),
    "checkpoint": (
        lambda: fit(None, None, None, ModelCheckpoint(monitor="accuracy"), enable_checkpointing=True),
        Misconfigured,
        ["accuracy", "val_loss", r"self\.log\("],
    ),
    "plateau": (
        lambda: fit(having(configure_optimizers=plateau)),
        Misconfigured,
        ["ReduceLROnPlateau` monitors 'accuracy'", r"\['val_loss'\]", r"self\.log\('accuracy'"],
    ),
}

ROWS = {
    f"{group}: {name}": row
    for group, rows in (
        ("argument", ARGUMENTS),
        ("entry", ENTRY),
        ("interval", INTERVALS),
        ("loss", LOSSES),
        ("monitor", MONITORS),
    )
    for name, row in rows.items()
}


@pytest.mark.parametrize("name", ROWS)
def test_what_the_message_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_the_mistake, error, parts = ROWS[name]
    with pytest.raises(error) as raised:
        make_the_mistake()
    message = str(raised.value)
    assert [part for part in parts if not re.search(part, message)] == [], message
    assert not re.search(r"\S  +\S", message), "joined with two spaces"
    assert not list(tmp_path.iterdir()), (
        "nothing is written before the mistake is seen" if "monitor" not in name else ""
    )


@pytest.mark.skipif(sys.platform == "win32", reason="other rules for paths")
def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    trainer = quiet(callbacks=[ModelCheckpoint(tmp_path / "taken")], enable_checkpointing=True)
    with pytest.raises(MisconfigurationException, match=r"cannot write to .*taken.*ModelCheckpoint\(dirpath=...\)"):
        trainer.fit(Net(), loader(), loader())


def test_a_misspelt_hook_is_told() -> None:
    class Misspelling(fulmen.Callback):
        def on_train_batch_ends(self, *_: Any) -> None:
            """Never called."""

    with pytest.warns(UserWarning, match="`Misspelling.on_train_batch_ends` looks like a hook .* `on_train_batch_end`"):
        fit(None, None, None, Misspelling())
