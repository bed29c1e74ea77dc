"""The promise: a run that is interrupted and resumed is, bit for bit, the run that was not interrupted.

Each scenario is run once without interruption. On the way a checkpoint is written wherever one can be taken. Then, from
each of them, a new process-like start (other seeds, new objects) must give the rest of the run: the same samples in the
same order, the same losses, learning rates and validations, and in the end the same weights, optimizer states and
metrics.
"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from fulmen.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from fulmen.loggers import Logger

SIZE, BATCH, EPOCHS = 10, 2, 3
BATCHES = SIZE // BATCH

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


# ---------------------------------------------------------------------------------------------------- the model


class Net(fulmen.LightningModule):
    """Dropout, random numbers in validation, everything that happens on a tape."""

    tape: list[Any]

    def __init__(self, schedule: str = "none", interval: str = "epoch") -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.schedule, self.interval = schedule, interval
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
            config = {"scheduler": scheduler, "monitor": "val_loss", "interval": self.interval}
            return {"optimizer": optimizer, "lr_scheduler": config}
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
        "b": DataLoader(table(), 4, shuffle=True, generator=generator()),
    },
    "odd end": lambda: DataLoader(table(), 4, shuffle=True),
}


# ---------------------------------------------------------------------------------------------------- a run


@dataclass
class Scenario:
    loader: Callable[[], Any] = LOADERS["augmentation"]
    module: Callable[[], Net] = Net
    validation: Callable[[], Any] | None = lambda: DataLoader(Augmented(), 5, shuffle=True)
    callbacks: Callable[[], list[Any]] = list
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Kept:
    """A checkpoint, with the number of events and of logged rows before it, and whether a stop was asked for."""

    path: Path
    events: int
    rows: int
    stops: bool


class Keeper(fulmen.Callback):
    """Writes a checkpoint wherever one can be taken, and notes how long the tape was."""

    order = 1
    after_module = frozenset({"on_train_epoch_end"})

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept: list[Kept] = []

    def keep(self, trainer: fulmen.Trainer, module: Any) -> None:
        path = self.directory / f"{len(self.kept)}.ckpt"
        self.kept.append(Kept(path, len(module.tape), len(trainer.logger.rows), trainer.should_stop))
        trainer.save_checkpoint(path)

    def on_train_batch_end(self, trainer: fulmen.Trainer, module: Any, *_: Any) -> None:
        if trainer.fit_loop.closes or not module.automatic_optimization:
            self.keep(trainer, module)

    def on_validation_end(self, trainer: fulmen.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.fit_loop.closes:
            self.keep(trainer, module)

    def on_train_epoch_end(self, trainer: fulmen.Trainer, module: Any) -> None:
        self.keep(trainer, module)


class Rows(Logger):
    """What loggers get, with its x."""

    name, version, save_dir = "rows", 0, None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """There are none."""


@dataclass
class Outcome:
    tape: list[Any]
    rows: list[Any]
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
    module, loader, rows = scenario.module(), scenario.loader(), Rows()
    validation = scenario.validation() if scenario.validation else None
    arguments = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **scenario.arguments}
    arguments.setdefault("enable_checkpointing", False)
    trainer = fulmen.Trainer(
        accelerator="cpu",
        logger=rows,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=[*scenario.callbacks(), *callbacks],
        **arguments,
    )
    trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
    return Outcome(
        module.tape,
        rows.rows,
        {name: value.clone() for name, value in module.state_dict().items()},
        [optimizer.state_dict() for optimizer in trainer.optimizers],
        [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        dict(trainer.callback_metrics),
        (trainer.current_epoch, trainer.global_step, trainer.fit_loop.batch_idx, trainer.fit_loop.total_batch_idx),
        loader,
    )


def assert_same_rest(whole: Outcome, rest: Outcome, kept: Kept) -> None:
    assert rest.tape == whole.tape[kept.events :]
    # what a batch logged goes to the loggers after its end, in which the checkpoint may have been taken
    assert rest.rows in (whole.rows[kept.rows :], whole.rows[kept.rows + 1 :])
    assert_same_end(whole, rest)


def assert_same_end(whole: Outcome, rest: Outcome) -> None:
    torch.testing.assert_close(rest.weights, whole.weights, rtol=0, atol=0)
    torch.testing.assert_close(rest.optimizers, whole.optimizers, rtol=0, atol=0)
    assert rest.schedulers == whole.schedulers
    assert rest.counters == whole.counters
    torch.testing.assert_close(rest.metrics, whole.metrics, rtol=0, atol=0)


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
    "plateau by step": Scenario(module=lambda: Net("plateau", "step"), arguments={"val_check_interval": 1}),
    "validation with a generator of its own": Scenario(
        validation=lambda: DataLoader(table(), 5, shuffle=True, generator=generator()),
        arguments={"val_check_interval": 2, "num_sanity_val_steps": 1},
    ),
    "learning rates logged": Scenario(module=lambda: Net("step"), callbacks=lambda: [LearningRateMonitor()]),
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
    for kept in keeper.kept:
        if not kept.stops:  # a wish to stop is not part of a checkpoint, see below
            rest = run(scenario, tmp_path, ckpt_path=kept.path, seed=99)
            assert_same_rest(whole, rest, kept)


# ---------------------------------------------------------------------------------------------------- interruptions


class Crash(Exception):
    """Something in the user's code."""


class Crashing(fulmen.Callback):
    """Ends the run by an exception at the start of a batch, counted over all epochs."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: fulmen.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Crash


def checkpoints(directory: Path) -> list[Any]:
    return [ModelCheckpoint(directory, "latest", every_n_train_steps=1)]


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    crashes=st.lists(st.integers(1, EPOCHS * BATCHES - 1), min_size=1, max_size=3, unique=True).map(sorted),
    accumulate=st.sampled_from([1, 2]),
    interval=st.integers(1, BATCHES),
    schedule=st.sampled_from(["none", "step", "epoch", "plateau"]),
    loader=st.sampled_from(sorted(LOADERS)),
)
def test_however_often_it_crashes(
    crashes: list[int], accumulate: int, interval: int, schedule: str, loader: str
) -> None:
    """After each crash the run goes on from its last checkpoint; the end is the same as without any."""
    length = len(LOADERS[loader]())
    scenario = Scenario(
        loader=LOADERS[loader],
        module=lambda: Net(schedule),
        arguments={
            "accumulate_grad_batches": accumulate,
            "val_check_interval": min(interval, length),
            "enable_checkpointing": True,
        },
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        whole = run(scenario, directory, *checkpoints(directory / "whole"))
        latest, seed = None, 1
        for crash in crashes:
            with suppress(Crash):
                run(scenario, directory, *checkpoints(directory / "kept"), Crashing(crash), ckpt_path=latest, seed=seed)
            latest = next((directory / "kept").glob("*.ckpt"), None)
            seed = 1 if latest is None else 99 + crash
        rest = run(scenario, directory, *checkpoints(directory / "kept"), ckpt_path=latest, seed=seed)
        assert rest.tape == whole.tape[len(whole.tape) - len(rest.tape) :]
        assert_same_end(whole, rest)


def test_a_wish_to_stop_is_not_kept_but_what_led_to_it(tmp_path: Path) -> None:
    """A run stopped early goes on when it is resumed, until its callbacks decide again, with the counts they had."""
    stopping = lambda: [EarlyStopping("val_loss", patience=1)]  # noqa: E731
    scenario = Scenario(callbacks=stopping, arguments={"max_epochs": 10, "val_check_interval": 2})
    keeper = Keeper(tmp_path)
    run(scenario, tmp_path, keeper)
    stopped = keeper.kept[-1]
    assert stopped.stops
    state = torch.load(stopped.path)["callbacks"]
    assert [value["wait_count"] for key, value in state.items() if key.startswith("EarlyStopping")] == [1]
    rest = run(scenario, tmp_path, ckpt_path=stopped.path)
    assert {event[0] for event in rest.tape} == {"train", "val", "validated", "epoch"}


def test_a_checkpoint_inside_a_window_is_right_about_everything_but_its_gradients(tmp_path: Path) -> None:
    """Gradients that were accumulated but not used yet are not part of a checkpoint, as in the reference."""
    scenario = Scenario(validation=None, arguments={"accumulate_grad_batches": 2})
    module: list[Any] = []

    class InsideWindow(fulmen.Callback):
        def on_train_batch_end(self, trainer: fulmen.Trainer, net: Any, *_: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 2:  # the first half of the second window
                trainer.save_checkpoint(tmp_path / "inside.ckpt")
                module.append(len(net.tape))

    whole = run(scenario, tmp_path, InsideWindow())
    rest = run(scenario, tmp_path, ckpt_path=tmp_path / "inside.ckpt", seed=99)
    after = whole.tape[module[0] :]
    places = [event[:5] for event in after]  # epoch, batch, step and samples
    assert [event[:5] for event in rest.tape] == places
    assert rest.tape[0] == after[0]  # the loss of the window's second half, before the weights part
    assert rest.tape[1] != after[1]
    assert rest.counters == whole.counters


# ---------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("name", ["shuffle", "augmentation"])
def test_what_was_trained_on_is_not_loaded_again(name: str, tmp_path: Path) -> None:
    scenario, keeper = Scenario(loader=LOADERS[name], validation=None), Keeper(tmp_path)
    run(scenario, tmp_path, keeper)
    for step, kept in enumerate(keeper.kept[:BATCHES], start=1):
        rest = run(scenario, tmp_path, ckpt_path=kept.path)
        assert len(rest.loader.dataset.loaded) == EPOCHS * SIZE - step * BATCH


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers(persistent: bool, tmp_path: Path) -> None:
    scenario = Scenario(
        loader=lambda: DataLoader(
            Augmented(noise=False), BATCH, shuffle=True, num_workers=2, persistent_workers=persistent
        ),
        arguments={"val_check_interval": 2},
    )
    keeper = Keeper(tmp_path)
    whole = run(scenario, tmp_path, keeper)
    for kept in keeper.kept[1::4]:
        assert_same_rest(whole, run(scenario, tmp_path, ckpt_path=kept.path, seed=99), kept)


@pytest.mark.filterwarnings("ignore:The `IterableDataset` of the train loader has a `__len__`")
@pytest.mark.parametrize("dataset", [Stream, EndlessStream])
def test_a_stream_is_read_again_up_to_where_it_was(dataset: type, tmp_path: Path) -> None:
    scenario, keeper = Scenario(loader=lambda: DataLoader(dataset(), BATCH), validation=None), Keeper(tmp_path)
    whole = run(scenario, tmp_path, keeper)
    for place, kept in enumerate(keeper.kept):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rest = run(scenario, tmp_path, ckpt_path=kept.path, seed=99)
        assert_same_rest(whole, rest, kept)
        told = [w for w in caught if "loaded and thrown away" in str(w.message)]
        # at the end of an epoch there is nothing to look for; that a stream without a length has ended, only it knows
        assert len(told) == (place % (BATCHES + 1) < BATCHES - (dataset is Stream))
