"""When a fit ends and what it has run by then: facts recorded from the reference (lightning 2.6.6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import fulmen
from fulmen.states import TrainerFn


class Course(fulmen.Callback):
    """Notes the course of a fit: starts, batches trained on as epoch.batch, validations, ends, and the last epoch."""

    def __init__(self) -> None:
        self.words: list[str] = []

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
        self.words.append("sanity")

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.words.append("START")

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.words.append("start")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.words.append(f"{trainer.current_epoch}.{batch_idx}")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.words.append("val")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.words.append("end")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.words.append(f"END{trainer.current_epoch}")


@pytest.fixture
def course() -> Course:
    return Course()


def stopping_in(hook: str, module: Any) -> Any:
    setattr(module, hook, lambda *_: setattr(module.trainer, "should_stop", True))
    return module


@pytest.mark.parametrize(
    ("hook", "arguments", "expected"),
    [
        ("on_train_start", {}, "START END0"),
        ("on_train_epoch_start", {}, "START start end END1"),
        ("on_train_epoch_start", {"min_steps": 2}, "START start 0.0 0.1 0.2 val end END1"),
        ("on_train_batch_end", {}, "START start 0.0 val end END1"),
        ("on_train_batch_end", {"min_epochs": 1}, "START start 0.0 0.1 0.2 val end END1"),
        ("on_validation_end", {"val_check_interval": 1}, "START start 0.0 val end END1"),
        ("on_train_epoch_end", {}, "START start 0.0 0.1 0.2 val end END1"),
        (
            "on_train_start",
            {"min_epochs": 2, "min_steps": 4},
            "START start 0.0 0.1 0.2 val end start 1.0 1.1 1.2 val end END2",
        ),
        (
            "on_train_start",
            {"min_epochs": 1, "min_steps": 4},
            "START start 0.0 0.1 0.2 val end start 1.0 val end END2",
        ),
    ],
    ids=str,
)
def test_a_wish_to_stop(
    fit: Any, ValNet: Any, data: Any, course: Course, hook: str, arguments: dict[str, Any], expected: str
) -> None:
    trainer = fit(stopping_in(hook, ValNet()), data(3), data(1), max_epochs=5, callbacks=[course], **arguments)
    assert course.text == expected
    assert (trainer.should_stop, trainer.current_epoch) == (True, expected.count("end"))


def test_an_epoch_without_batches_leaves_the_counts_of_batches(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.on_train_epoch_start = lambda: setattr(module.trainer, "should_stop", module.current_epoch == 1)
    trainer = fit(module, data(2), max_epochs=4)
    counts = (trainer.current_epoch, trainer.global_step, trainer.fit_loop.batch_idx, trainer.fit_loop.total_batch_idx)
    assert (*counts, trainer.is_last_batch) == (2, 2, -1, 1, False)


def test_the_index_of_the_batch_begins_anew_before_the_hooks_of_the_epoch(fit: Any, Net: Any, data: Any) -> None:
    module, seen = Net(), []
    module.on_train_epoch_start = lambda: seen.append(
        (module.trainer.fit_loop.batch_idx, module.trainer.fit_loop.total_batch_idx)
    )
    fit(module, data(3), max_epochs=2)
    assert seen == [(-1, -1), (-1, 2)]


@pytest.mark.parametrize(
    ("arguments", "expected", "counts"),
    [
        (
            {"max_steps": 3, "accumulate_grad_batches": 2},
            "START start 0.0 0.1 0.2 val end start 1.0 1.1 end END2",
            (2, 3, 1, 4),
        ),
        ({"max_steps": 3}, "START start 0.0 0.1 0.2 val end END1", (1, 3, 2, 2)),
        ({"max_steps": 2}, "START start 0.0 0.1 end END1", (1, 2, 1, 1)),
        ({"max_epochs": 0, "num_sanity_val_steps": 1}, "sanity val", (0, 0, -1, -1)),
        ({"max_steps": 0, "num_sanity_val_steps": 1}, "sanity val", (0, 0, -1, -1)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*never comes due")
def test_limits(
    fit: Any, ValNet: Any, data: Any, course: Course, arguments: dict[str, Any], expected: str, counts: tuple[int, ...]
) -> None:
    trainer = fit(ValNet(), data(3), data(1), **{"max_epochs": 5, **arguments}, callbacks=[course])
    loop = trainer.fit_loop
    assert course.text == expected
    assert (trainer.current_epoch, trainer.global_step, loop.batch_idx, loop.total_batch_idx) == counts


def test_a_second_fit_checks_again_even_if_nothing_is_left(quiet: Any, ValNet: Any, data: Any, course: Course) -> None:
    trainer, module = quiet(num_sanity_val_steps=1, callbacks=[course]), ValNet()
    trainer.fit(module, data(1), data(1))
    trainer.fit(module, data(1), data(1))
    assert course.text == "sanity val START start 0.0 val end END1 sanity val"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": None}, (1000, 0, -1, None)),
        ({"max_epochs": None, "max_steps": 2}, (-1, 0, 2, None)),
        ({"max_epochs": None, "max_time": "00:00:00:01"}, (-1, 0, -1, None)),
        ({"max_epochs": None, "max_steps": 2, "min_epochs": 3}, (-1, 3, 2, None)),
        ({"max_epochs": 2, "min_steps": 1}, (2, 1, -1, 1)),
        ({"max_epochs": None, "fast_dev_run": 2}, (1, 0, 2, None)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*stops after 1000 epochs")
def test_limits_are_resolved_when_a_fit_begins(
    fit: Any, Net: Any, data: Any, arguments: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    trainer = fit(stopping_in("on_train_start", Net()), data(1), **arguments)
    assert (trainer.max_epochs, trainer.min_epochs, trainer.max_steps, trainer.min_steps) == expected


# ---------------------------------------------------------------------------------------------------- skipping


@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_is_skipped_counts_as_done_with(fit: Any, ValNet: Any, data: Any, course: Course, at: int) -> None:
    module = ValNet()
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == at else None
    trainer = fit(module, data(4), data(1), callbacks=[course])
    assert course.text == " ".join(["START start", *(f"0.{batch}" for batch in range(at)), "end END1"])
    assert (trainer.is_last_batch, trainer.fit_loop.batch_idx, trainer.global_step) == (True, at, at)


# ---------------------------------------------------------------------------------------------------- asking for data


def test_nobody_is_asked_for_data_of_which_none_are_wanted(quiet: Any, ValNet: Any, data: Any) -> None:
    module, asked = ValNet(), []
    for stage in ("train", "val", "test", "predict"):
        setattr(module, f"{stage}_dataloader", lambda stage=stage: asked.append(stage) or data(2))
    off = {f"limit_{stage}_batches": 0 for stage in ("train", "val", "test", "predict")}
    trainer = quiet(**off, num_sanity_val_steps=2)
    trainer.fit(module)
    assert trainer.num_training_batches == 0
    results = (trainer.validate(module, verbose=False), trainer.test(module, verbose=False), trainer.predict(module))
    assert (asked, results) == ([], ([], [], None))
    assert (trainer.val_dataloaders, trainer.num_val_batches, trainer.num_predict_batches) == (None, [], [])
    quiet(limit_val_batches=0).fit(module)
    assert asked == ["train"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "fit train val START start val-start"),
        ({"num_sanity_val_steps": 1}, "fit val val-start train START start val-start"),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, "fit train START start start val val-start"),
        (
            {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2},
            "fit train val START start val-start train start val val-start",
        ),
        (
            {"reload_dataloaders_every_n_epochs": 2, "max_epochs": 3, "num_sanity_val_steps": 1},
            "fit val val-start train START start val-start start val-start train start val val-start",
        ),
        ({"limit_val_batches": 0}, "fit train START start"),
        ({"max_epochs": 0}, "fit train"),
    ],
    ids=str,
)
def test_when_data_are_asked_for(fit: Any, ValNet: Any, data: Any, arguments: dict[str, Any], expected: str) -> None:
    words: list[str] = []
    module = ValNet()

    def note(word: str, value: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
        return lambda: words.append(word) or value()

    module.train_dataloader, module.val_dataloader = note("train", lambda: data(1)), note("val", lambda: data(1))
    module.on_fit_start, module.on_train_start = note("fit"), note("START")
    module.on_train_epoch_start, module.on_validation_start = note("start"), note("val-start")
    fit(module, **arguments)
    assert " ".join(words) == expected


def test_samplers_are_told_the_epoch(quiet: Any, Net: Any, ValNet: Any, data: Any) -> None:
    told: list[Any] = []

    class Sampler(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    class Batches(BatchSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(f"batches {epoch}")

    rows = torch.ones(2, 2)
    trainer, module = quiet(max_epochs=2, num_sanity_val_steps=1), ValNet()
    trainer.fit(module, data(1), DataLoader(rows, sampler=Sampler(rows)))  # type: ignore[arg-type]
    trainer.validate(module, DataLoader(rows, sampler=Sampler(rows)), verbose=False)  # type: ignore[arg-type]
    assert told == [0, 0, 1, 2]
    told.clear()
    quiet(max_epochs=2).fit(Net(), DataLoader(rows, batch_sampler=Batches(SequentialSampler(rows), 1, False)))  # type: ignore[arg-type]
    assert told == ["batches 0", "batches 1"]


# ---------------------------------------------------------------------------------------------------- sanity check


def test_a_sanity_check_leaves_no_trace(fit: Any, ValNet: Any, data: Any) -> None:
    seen, numbers = [], []

    class Looks(ValNet):
        def draw(self) -> tuple[float, ...]:
            return random.random(), float(np.random.rand()), float(torch.rand(1))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", 1.0, on_step=True, on_epoch=True, prog_bar=True)
            self.draw()

        def on_validation_batch_end(self, *_: Any) -> None:
            trainer = self.trainer
            seen.append((trainer.sanity_checking, trainer.validating, trainer.evaluating, trainer.state.stage))
            seen.append((trainer.num_sanity_val_batches, trainer.num_val_batches))

        def on_train_start(self) -> None:
            trainer = self.trainer
            metrics = (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)
            metrics = tuple(map(dict, metrics))
            seen.append((metrics, trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.ready))
            numbers.append(self.draw())

    for steps in (0, 2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        fit(Looks(), data(1), data(3), num_sanity_val_steps=steps)
    checked = seen[-11:]
    assert checked[:2] == [(True, False, True, "sanity_check"), ([2], [3])]
    assert checked[4] == (({}, {}, {}), 0)
    assert checked[5:7] == [(False, True, True, "validate"), ([2], [3])]
    assert numbers[0] == numbers[1]


# ---------------------------------------------------------------------------------------------------- state


def test_the_state_of_the_trainer_in_a_run(quiet: Any, ValNet: Any, data: Any) -> None:
    seen: list[Any] = []

    class Looks(fulmen.Callback):
        def note(self, trainer: Any, stage: Any) -> None:
            assert isinstance(stage, TrainerFn)
            state = trainer.state
            seen.append((str(stage.value), state.fn.value, state.stage.value, state.status.value))

        def setup(self, trainer: Any, module: Any, stage: Any) -> None:
            self.note(trainer, stage)

        def teardown(self, trainer: Any, module: Any, stage: Any) -> None:
            self.note(trainer, stage)

    trainer, module = quiet(callbacks=[Looks()]), ValNet()
    assert (trainer.state.status, trainer.state.fn) == ("initializing", None)
    for call, stage in (("fit", "train"), ("validate", "validate"), ("test", "test"), ("predict", "predict")):
        loaders = [data(1), data(1)] if call == "fit" else [data(1)]
        getattr(trainer, call)(module, *loaders, **({"verbose": False} if call in ("validate", "test") else {}))
        assert seen[-2:] == [(call, call, stage, "running")] * 2
        assert (trainer.state.status, trainer.state.fn, trainer.state.stage) == ("finished", call, None)


# ---------------------------------------------------------------------------------------------------- optimizers


def test_optimizers_that_are_set_take_over(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    rates = (0.0, 1.0)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=rates[0])
    before = [parameter.detach().clone() for parameter in module.parameters()]
    changed = []

    def replace(outputs: Any, batch: Any, batch_idx: int) -> None:
        now = [parameter.detach().clone() for parameter in module.parameters()]
        changed.append(any((new != old).any() for new, old in zip(now, before, strict=True)))
        if batch_idx == 1:
            module.trainer.optimizers = [torch.optim.Adam(module.parameters(), lr=rates[1])]

    module.on_train_batch_end = replace
    trainer = fit(module, data(4))
    assert changed == [False, False, True, True]
    assert type(module.optimizers()).__name__ == "LightningAdam"
    assert (type(trainer.optimizers[0]).__name__, trainer.global_step) == ("Adam", 4)
