"""The promise: a run that is interrupted and resumed is, bit for bit, the run that was not interrupted.

Each scenario is run once without interruption. On the way a checkpoint is written wherever one can be taken. Then, from
each of them, a new process-like start (other seeds, new objects) must give the rest of the run: the same samples in the
same order, the same losses, learning rates and validations, and in the end the same weights, optimizer states and
metrics.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler, TensorDataset

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.errors import PossibleUserWarning

SIZE, BATCH, EPOCHS = 10, 2, 3
BATCHES = SIZE // BATCH

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


# ---------------------------------------------------------------------------------------------------- the model


class Net(fulmen.LightningModule):
    """Dropout, random numbers in validation, everything that happens on a tape."""

    tape: list[Any]

    def __init__(self, schedule: str = "none") -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.schedule = schedule
        self.tape = []

    def loss(self, batch: Any) -> Tensor:
        return self.layer(features(batch)).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        self.tape.append(("train", self.current_epoch, batch_idx, self.global_step, seen(batch), loss.item(), rates))
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = self.loss(batch) + torch.rand(()) + random.random()
        if not self.trainer.sanity_checking:
            self.tape.append(("val", self.current_epoch, batch_idx, self.global_step, seen(batch), loss.item()))
        self.log("val_loss", loss)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.tape.append(("validated", self.trainer.callback_metrics.get("val_loss")))

    def on_train_epoch_end(self) -> None:
        self.tape.append(("epoch", self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler: Any
        if self.schedule == "none":
            return optimizer
        if self.schedule == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule}}


class Manual(Net):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return loss

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.layer[0].parameters(), lr=0.1)
        second = torch.optim.SGD(self.layer[3].parameters(), lr=0.1, momentum=0.9)
        rates = [torch.optim.lr_scheduler.StepLR(each, step_size=1, gamma=0.9) for each in (first, second)]
        return [first, second], rates


def features(batch: Any) -> Tensor:
    if isinstance(batch, dict):
        return torch.cat([features(part) for part in batch.values()])
    return batch[0] if isinstance(batch, (list, tuple)) else batch


def seen(batch: Any) -> list[float]:
    return features(batch).flatten().tolist()


# ---------------------------------------------------------------------------------------------------- the data

DATA = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))


class Augmented(Dataset[Tensor]):
    """Each sample with noise of both global generators; remembers what was loaded."""

    def __init__(self, noise: bool = True) -> None:
        self.loaded: list[int] = []
        self.noise = noise

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.append(index)
        return DATA[index] + torch.randn(3) * random.random() if self.noise else DATA[index]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from DATA

    def __len__(self) -> int:
        return SIZE


class EndlessStream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from DATA


class Shuffled(Sampler[int]):
    """A custom sampler that draws from Python's generator, and in each epoch another number of times."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(SIZE))
        for _ in range(self.epoch + 1):
            random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return SIZE


def table() -> TensorDataset:
    return TensorDataset(DATA)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: DataLoader(Augmented(noise=False), BATCH, shuffle=True),
    "shuffled table": lambda: DataLoader(table(), BATCH, shuffle=True),
    "user generator": lambda: DataLoader(table(), BATCH, shuffle=True, generator=generator()),
    "custom sampler": lambda: DataLoader(Augmented(noise=False), BATCH, sampler=Shuffled()),
    "sequential": lambda: DataLoader(table(), BATCH, sampler=SequentialSampler(range(SIZE))),
    "augmentation": lambda: DataLoader(Augmented(), BATCH, shuffle=True),
    "several": lambda: {
        "a": DataLoader(Augmented(), BATCH, shuffle=True),
        "b": DataLoader(table(), 1 + BATCH, shuffle=True, generator=generator()),
    },
    "odd end": lambda: DataLoader(table(), 3, shuffle=True),
}


# ---------------------------------------------------------------------------------------------------- a run


@dataclass
class Scenario:
    loader: Callable[[], Any] = LOADERS["augmentation"]
    module: Callable[[], Net] = Net
    validation: Callable[[], Any] | None = lambda: DataLoader(Augmented(), 5, shuffle=True)
    callbacks: Callable[[], list[Any]] = list
    arguments: dict[str, Any] = field(default_factory=dict)


class Keeper(fulmen.Callback):
    """Writes a checkpoint wherever one can be taken, and notes how long the tape was."""

    order = 1
    after_module = frozenset({"on_train_epoch_end"})

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept: list[tuple[Path, int]] = []

    def keep(self, trainer: fulmen.Trainer, module: Any) -> None:
        path = self.directory / f"{len(self.kept)}.ckpt"
        self.kept.append((path, len(module.tape)))
        trainer.save_checkpoint(path)

    def on_train_batch_end(self, trainer: fulmen.Trainer, module: Any, *_: Any) -> None:
        if trainer.fit_loop.closes or not module.automatic_optimization:
            self.keep(trainer, module)

    def on_validation_end(self, trainer: fulmen.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.fit_loop.closes:
            self.keep(trainer, module)

    def on_train_epoch_end(self, trainer: fulmen.Trainer, module: Any) -> None:
        self.keep(trainer, module)


@dataclass
class Outcome:
    tape: list[Any]
    weights: dict[str, Tensor]
    optimizers: list[Any]
    schedulers: list[Any]
    metrics: dict[str, Tensor]
    counters: tuple[int, ...]
    loader: Any


def run(
    scenario: Scenario,
    directory: Path,
    *callbacks: Any,
    ckpt_path: Path | None = None,
    seed: int = 1,
) -> Outcome:
    torch.manual_seed(seed)
    random.seed(seed)
    module, loader = scenario.module(), scenario.loader()
    validation = scenario.validation() if scenario.validation else None
    arguments = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **scenario.arguments}
    trainer = fulmen.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=[*scenario.callbacks(), *callbacks],
        **arguments,
    )
    trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
    return Outcome(
        module.tape,
        {name: value.clone() for name, value in module.state_dict().items()},
        [optimizer.state_dict() for optimizer in trainer.optimizers],
        [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        dict(trainer.callback_metrics),
        (trainer.current_epoch, trainer.global_step, trainer.fit_loop.batch_idx, trainer.fit_loop.total_batch_idx),
        loader,
    )


def assert_same_rest(whole: Outcome, rest: Outcome, consumed: int) -> None:
    assert rest.tape == whole.tape[consumed:]
    torch.testing.assert_close(rest.weights, whole.weights, rtol=0, atol=0)
    torch.testing.assert_close(rest.optimizers, whole.optimizers, rtol=0, atol=0)
    assert rest.schedulers == whole.schedulers
    assert rest.counters == whole.counters
    ran = {event[0] for event in rest.tape}
    for name, value in whole.metrics.items():
        if {"loss": "train", "val_loss": "val"}.get(name, name) in ran:
            assert torch.equal(rest.metrics[name], value)


SCENARIOS: dict[str, Scenario] = {
    **{name: Scenario(loader=loader) for name, loader in LOADERS.items()},
    "no validation": Scenario(validation=None),
    "validation inside": Scenario(arguments={"val_check_interval": 2}),
    "validation every second epoch": Scenario(arguments={"check_val_every_n_epoch": 2}),
    "validation over epochs": Scenario(arguments={"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "sanity check": Scenario(arguments={"num_sanity_val_steps": 2}),
    "accumulation": Scenario(arguments={"accumulate_grad_batches": 2}),
    "scheduler by step": Scenario(module=lambda: Net("step")),
    "scheduler by epoch": Scenario(module=lambda: Net("epoch")),
    "scheduler on a plateau": Scenario(module=lambda: Net("plateau")),
    "plateau inside": Scenario(module=lambda: Net("plateau"), arguments={"val_check_interval": 2}),
    "manual": Scenario(module=Manual),
    "manual, validation inside": Scenario(module=Manual, arguments={"val_check_interval": 2}),
    "early stopping": Scenario(
        callbacks=lambda: [EarlyStopping("val_loss", patience=1)],
        arguments={"max_epochs": 10, "val_check_interval": 2},
    ),
    "max_steps": Scenario(arguments={"max_steps": 8, "max_epochs": -1}),
    "limited": Scenario(arguments={"limit_train_batches": 3, "limit_val_batches": 1}),
    "two validation loaders": Scenario(
        validation=lambda: [DataLoader(Augmented(), 5, shuffle=True), DataLoader(table(), 4, shuffle=True)],
    ),
    "clipping": Scenario(arguments={"gradient_clip_val": 0.01}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_resumed_run_is_the_rest_of_the_whole_one(name: str, tmp_path: Path) -> None:
    scenario, keeper = SCENARIOS[name], Keeper(tmp_path)
    whole = run(scenario, tmp_path, keeper)
    assert len(keeper.kept) >= EPOCHS
    for path, consumed in keeper.kept:
        rest = run(scenario, tmp_path, ckpt_path=path, seed=99)
        assert_same_rest(whole, rest, consumed)
