"""How long a fit lasts, when it validates, and what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fulmen
from fulmen.errors import MisconfigurationException, PossibleUserWarning


class Stream(IterableDataset[Tensor]):
    """Rows whose number is not known before they end."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(self.rows, 2))


def stream(rows: int) -> DataLoader[Tensor]:
    return DataLoader(Stream(rows), batch_size=1)


# ---------------------------------------------------------------------------------------------------- equality


class Dropout(fulmen.LightningModule):
    """A model that draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)
        )
        self.losses: list[float] = []
        self.scores: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.scores.append(torch.nn.functional.mse_loss(self.net(x), y).item())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def regression() -> tuple[Dropout, DataLoader[Any], DataLoader[Any]]:
    """A model, and shuffled training and unshuffled validation data, from one seed."""
    torch.manual_seed(7)
    x = torch.randn(22, 3)
    rows = TensorDataset(x, x.sum(1, keepdim=True))
    return Dropout(), DataLoader(rows, batch_size=4, shuffle=True), DataLoader(rows, batch_size=8)


def raw_loop(epochs: int, accumulate: int = 1, clip: float | None = None) -> Dropout:
    """The same training, written by hand."""
    module, train, val = regression()
    optimizer = module.configure_optimizers()
    module.train()
    for _ in range(epochs):
        for place, batch in enumerate(train):
            loss = module.training_step(batch, place)
            if place % accumulate == 0:
                optimizer.zero_grad()
            (loss / accumulate).backward()
            if (place + 1) % accumulate == 0 or place + 1 == len(train):
                if clip:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
        module.eval()
        with torch.no_grad():
            for place, batch in enumerate(val):
                module.validation_step(batch, place)
        module.train()
    return module


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (4, None), (1, 0.1), (4, 0.1)])
def test_fit_equals_a_raw_loop_bit_for_bit(fit: Any, accumulate: int, clip: float | None, sanity: int) -> None:
    raw = raw_loop(3, accumulate, clip)
    module, train, val = regression()
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "num_sanity_val_steps": sanity}
    fit(module, train, val, max_epochs=3, **settings)
    assert module.losses == raw.losses
    assert module.scores[-9:] == raw.scores
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(module.state_dict().values(), raw.state_dict().values(), strict=True)
    )


# ---------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "0.0 0.1 0.2 0.3 val end"),
        ({"val_check_interval": 2}, "0.0 0.1 val 0.2 0.3 val end"),
        ({"val_check_interval": 3}, "0.0 0.1 0.2 val 0.3 end"),
        ({"val_check_interval": 0.5}, "0.0 0.1 val 0.2 0.3 val end"),
        ({"val_check_interval": 0.25, "limit_train_batches": 2}, "0.0 val 0.1 val end"),
        ({"val_check_interval": 0.01}, "0.0 val 0.1 val 0.2 val 0.3 val end"),
        ({"check_val_every_n_epoch": 2, "max_epochs": 3, "limit_train_batches": 1}, "0.0 end 1.0 val end 2.0 end"),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 3, "max_epochs": 2},
            "0.0 0.1 0.2 val 0.3 end 1.0 1.1 val 1.2 1.3 end",
        ),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 6, "max_epochs": 2},
            "0.0 0.1 0.2 0.3 end 1.0 1.1 val 1.2 1.3 end",
        ),
        ({"check_val_every_n_epoch": None, "max_epochs": 2}, "0.0 0.1 0.2 0.3 val end 1.0 1.1 1.2 1.3 val end"),
        ({"val_check_interval": {"microseconds": 1}, "limit_train_batches": 2}, "0.0 val 0.1 val end"),
        ({"val_check_interval": timedelta(hours=1)}, "0.0 0.1 0.2 0.3 end"),
        ({"val_check_interval": "00:01:00:00", "check_val_every_n_epoch": None}, "0.0 0.1 0.2 0.3 end"),
        ({"limit_val_batches": 0}, "0.0 0.1 0.2 0.3 end"),
        ({"num_sanity_val_steps": 1}, "sanity 0.0 0.1 0.2 0.3 val end"),
        ({"num_sanity_val_steps": 2, "limit_val_batches": 0}, "0.0 0.1 0.2 0.3 end"),
        ({"max_steps": 2}, "0.0 0.1 end"),
        ({"max_steps": 2, "val_check_interval": 2}, "0.0 0.1 val end"),
        ({"fast_dev_run": 2, "num_sanity_val_steps": 2}, "0.0 0.1 val end"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*never comes due")
def test_when_validation_runs(
    fit: Any, ValNet: Any, data: Any, diary: Any, arguments: dict[str, Any], expected: str
) -> None:
    fit(ValNet(), data(4), data(2), callbacks=[diary], **arguments)
    assert diary.text == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "0.0 0.1 0.2 val end"),
        ({"val_check_interval": 2}, "0.0 0.1 val 0.2 end"),
        ({"val_check_interval": 5}, "0.0 0.1 0.2 end"),
        ({"check_val_every_n_epoch": None}, "0.0 0.1 0.2 val end"),
        ({"limit_train_batches": 2}, "0.0 0.1 val end"),
        ({"limit_train_batches": 2, "val_check_interval": 1}, "0.0 val 0.1 val end"),
        ({"limit_train_batches": 5}, "0.0 0.1 0.2 val end"),
        ({"val_check_interval": timedelta(hours=1)}, "0.0 0.1 0.2 end"),
    ],
    ids=str,
)
def test_when_validation_runs_without_a_length(
    fit: Any, ValNet: Any, data: Any, diary: Any, arguments: dict[str, Any], expected: str
) -> None:
    fit(ValNet(), stream(3), data(1), callbacks=[diary], **arguments)
    assert diary.text == expected


def test_time_is_counted_from_the_end_of_the_last_validation(
    fit: Any, ValNet: Any, data: Any, diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("fulmen.clock.time.monotonic", lambda: clock[0])

    class Slow(ValNet):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            clock[0] += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            clock[0] += 10

    fit(Slow(), data(7), data(1), val_check_interval="00:00:00:03", callbacks=[diary], max_epochs=2, max_steps=9)
    assert diary.text == "0.0 0.1 0.2 val 0.3 0.4 0.5 val 0.6 end 1.0 1.1 val end"


def test_an_interval_longer_than_the_epoch_is_refused(fit: Any, ValNet: Any, data: Any) -> None:
    with pytest.raises(ValueError, match=r"val_check_interval=5.*4 training batches.*check_val_every_n_epoch=None"):
        fit(ValNet(), data(4), data(1), val_check_interval=5)


def test_a_fraction_of_an_unknown_length_is_refused(fit: Any, ValNet: Any, Net: Any, data: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"val_check_interval=0.5"):
        fit(ValNet(), stream(4), data(1), val_check_interval=0.5)
    with pytest.raises(MisconfigurationException, match=r"val_check_interval=0.5"):
        fit(ValNet(), stream(4), data(1), val_check_interval=0.5, limit_train_batches=2)
    with pytest.raises(MisconfigurationException, match=r"limit_train_batches=0.5"):
        fit(Net(), stream(4), limit_train_batches=0.5)


def test_validation_leaves_modes_and_gradients_as_they_were(fit: Any, ValNet: Any, data: Any) -> None:
    class Watches(ValNet):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.BatchNorm1d(2).eval()

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            assert not self.training
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            assert self.training
            assert not self.frozen.training
            assert torch.is_grad_enabled()
            return super().training_step(batch, batch_idx)

    with pytest.warns(PossibleUserWarning, match=r"1 submodule\(s\) are in eval mode"):
        fit(Watches(), data(3), data(1), val_check_interval=1)


def test_gradients_are_freed_before_validation_unless_a_window_is_open(fit: Any, ValNet: Any, data: Any) -> None:
    class Watches(ValNet):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.has_gradient = [*getattr(self, "has_gradient", []), self.layer.weight.grad is not None]

    module = Watches()
    fit(module, data(4), data(1), val_check_interval=1, accumulate_grad_batches=2)
    assert module.has_gradient == [True, False, True, False]


def test_a_validation_hook_may_set_the_modes_itself(fit: Any, ValNet: Any, data: Any) -> None:
    class Sets(ValNet):
        def on_validation_model_train(self) -> None:
            self.layer.eval()

        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            self.modes = [*getattr(self, "modes", []), self.layer.training]

    module = Sets()
    fit(module, data(2), data(1), val_check_interval=1)
    assert module.modes == [True, False]


def test_sanity_check_leaves_no_metrics_and_no_counts(fit: Any, ValNet: Any, data: Any) -> None:
    seen: dict[str, Any] = {}

    class Watches(fulmen.Callback):
        def on_sanity_check_end(self, trainer: Any, module: Any) -> None:
            seen["check"] = dict(trainer.callback_metrics), dict(trainer.logged_metrics)

        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen["start"] = dict(trainer.callback_metrics), trainer.fit_loop.val_loop.batch_progress.total.ready

    trainer = fit(ValNet(), data(2), data(5), num_sanity_val_steps=2, callbacks=[Watches()])
    assert seen == {"check": ({}, {}), "start": ({}, 0)}
    assert trainer.fit_loop.val_loop.batch_progress.total.ready == 5
    assert float(trainer.callback_metrics["val"]) == 2.0


@pytest.mark.parametrize(("steps", "seen"), [(1, 1), (3, 3), (-1, 5), (9, 5)])
def test_sanity_steps(fit: Any, ValNet: Any, data: Any, steps: int, seen: int) -> None:
    class Counts(ValNet):
        batches = 0

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.batches += self.trainer.sanity_checking

    module = Counts()
    fit(module, data(1), data(5), num_sanity_val_steps=steps)
    assert module.batches == seen


# ---------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ({}, 8),
        ({"limit_train_batches": 3}, 3),
        ({"limit_train_batches": 100}, 8),
        ({"limit_train_batches": 0.5}, 4),
        ({"limit_train_batches": 0.99}, 7),
        ({"limit_train_batches": 2.0}, 2),
        ({"limit_train_batches": 1.0}, 8),
        ({"limit_train_batches": 1}, 1),
        ({"overfit_batches": 2}, 2),
        ({"overfit_batches": 0.25}, 2),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
    ],
    ids=str,
)
def test_training_batches_of_an_epoch(fit: Any, Net: Any, data: Any, arguments: dict[str, Any], batches: int) -> None:
    trainer = fit(Net(), data(8), **arguments)
    assert (trainer.num_training_batches, trainer.global_step) == (batches, batches)


def test_training_batches_stay_known_after_another_entry_point(fit: Any, Net: Any, ValNet: Any, data: Any) -> None:
    trainer = fit(Net(), data(8))
    trainer.predict(ValNet(), data(3))
    assert trainer.num_training_batches == 8


def test_a_fit_with_nothing_left_says_what_to_type(fit: Any, Net: Any, data: Any, caplog: Any) -> None:
    trainer = fit(Net(), data(2), max_epochs=2)
    with caplog.at_level("INFO", logger="fulmen"):
        trainer.fit(Net(), data(2))
    assert "Nothing was trained, as 2 epochs were trained before" in caplog.text
    assert "`trainer.fit_loop.max_epochs = 4`" in caplog.text


@pytest.mark.parametrize("limit", [0, 0.0])
def test_no_training_batches_no_training(fit: Any, Net: Any, data: Any, limit: float) -> None:
    class Starts(Net):
        def on_train_start(self) -> None:
            raise AssertionError

        on_train_end = on_train_start

    assert fit(Starts(), data(4), limit_train_batches=limit).current_epoch == 0


def test_a_fraction_that_leaves_nothing_is_refused(fit: Any, Net: Any, data: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"limit_train_batches=0.1` of 4 batches leaves none"):
        fit(Net(), data(4), limit_train_batches=0.1)


def test_overfitting_takes_the_same_batches_every_epoch(fit: Any, ValNet: Any, data: Any) -> None:
    class Notes(ValNet):
        def __init__(self) -> None:
            super().__init__()
            self.trained: list[float] = []
            self.validated: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.trained.append(batch.mean().item())
            return self.loss(batch)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.validated.append(batch.mean().item())

    module = Notes()
    with pytest.warns(UserWarning, match="overfit_batches"):
        fit(module, data(8, shuffle=True), data(4), overfit_batches=2, max_epochs=2)
    assert module.trained == [0, 1, 0, 1]
    assert module.validated == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "epochs", "steps"),
    [
        ({"max_epochs": 2}, 2, 6),
        ({"max_epochs": 0}, 0, 0),
        ({"max_epochs": -1, "max_steps": 5}, 2, 5),
        ({"max_epochs": -1, "max_steps": 6}, 2, 6),
        ({"max_epochs": None, "max_steps": 4}, 2, 4),
        ({"max_epochs": 1, "max_steps": 5}, 1, 3),
        ({"max_epochs": -1, "max_steps": 0}, 0, 0),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 3, 6),
        ({"max_epochs": 3, "accumulate_grad_batches": 5}, 3, 3),
        ({"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 2}, 2, 3),
    ],
    ids=str,
)
def test_epochs_and_steps(fit: Any, Net: Any, data: Any, arguments: dict[str, Any], epochs: int, steps: int) -> None:
    trainer = fit(Net(), data(3), **arguments)
    assert (trainer.current_epoch, trainer.global_step) == (epochs, steps)


def test_without_any_limit_there_is_one_and_a_warning(quiet: Any, Net: Any, data: Any) -> None:
    class Leaves(Net):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    trainer = quiet(max_epochs=None)
    with pytest.warns(PossibleUserWarning, match="stops after 1000 epochs"):
        trainer.fit(Leaves(), data(1))
    assert (trainer.max_epochs, trainer.min_epochs, trainer.current_epoch) == (1000, 0, 1)


@pytest.mark.parametrize(("arguments", "minimum"), [({}, 0), ({"min_steps": 3}, 1), ({"min_epochs": 2}, 2)])
def test_min_epochs_by_default(fit: Any, Net: Any, data: Any, arguments: dict[str, Any], minimum: int) -> None:
    assert fit(Net(), data(1), max_epochs=3, **arguments).min_epochs == minimum


@pytest.mark.parametrize(
    ("arguments", "expected", "steps"),
    [
        ({}, "0.0 0.1 val end", 2),
        ({"min_epochs": 2}, "0.0 0.1 0.2 val end 1.0 1.1 1.2 val end", 6),
        ({"min_steps": 5}, "0.0 0.1 0.2 val end 1.0 1.1 val end", 5),
        ({"check_val_every_n_epoch": 2}, "0.0 0.1 end", 2),
        ({"limit_val_batches": 0}, "0.0 0.1 end", 2),
    ],
    ids=str,
)
def test_should_stop(
    fit: Any, ValNet: Any, data: Any, diary: Any, arguments: dict[str, Any], expected: str, steps: int
) -> None:
    class Stops(ValNet):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 1:
                self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    trainer = fit(Stops(), data(3), data(1), max_epochs=5, callbacks=[diary], **arguments)
    assert (diary.text, trainer.global_step) == (expected, steps)
    assert trainer.current_epoch == expected.count("end")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"max_epochs": 2}, "`max_epochs=2` reached"),
        ({"max_steps": 2, "max_epochs": -1}, "`max_steps=2` reached"),
        ({"limit_train_batches": 0}, "there are no training batches"),
        ({"max_epochs": 3, "stop": True}, "something set `trainer.should_stop`"),
    ],
    ids=str,
)
def test_why_it_stopped_is_told(fit: Any, Net: Any, data: Any, arguments: Any, reason: str, caplog: Any) -> None:
    caplog.set_level("INFO", logger="fulmen")
    module = Net()
    if arguments.pop("stop", False):
        module.on_train_batch_end = lambda *_: setattr(module.trainer, "should_stop", True)
    fit(module, data(3), **arguments)
    told = [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()]
    assert told == [f"`Trainer.fit` stopped: {reason}."]


def test_going_on_in_spite_of_should_stop_is_told_once(fit: Any, Net: Any, data: Any, caplog: Any) -> None:
    caplog.set_level("INFO", logger="fulmen")
    module = Net()
    module.on_train_batch_end = lambda *_: setattr(module.trainer, "should_stop", True)
    assert fit(module, data(3), max_epochs=5, min_epochs=3).current_epoch == 3
    assert sum("min_epochs=3" in record.getMessage() for record in caplog.records) == 1


def test_anomaly_detection_is_on_in_fit_only(fit: Any, Net: Any, data: Any) -> None:
    module, seen = Net(), []
    module.on_train_batch_end = lambda *_: seen.append(torch.is_anomaly_enabled())
    fit(module, data(1), detect_anomaly=True)
    fit(module, data(1))
    assert (seen, torch.is_anomaly_enabled()) == ([True, False], False)


def test_max_time(fit: Any, Net: Any, data: Any) -> None:
    trainer = fit(Net(), data(3), max_epochs=-1, max_time={"microseconds": 1})
    assert 0 < trainer.global_step <= 3


# ---------------------------------------------------------------------------------------------------- counters


def test_counters_in_each_hook(fit: Any, Net: Any, data: Any) -> None:
    seen = []

    class Watches(fulmen.Callback):
        def note(self, trainer: Any) -> None:
            loop = trainer.fit_loop
            counts = (trainer.current_epoch, trainer.global_step, loop.batch_idx, loop.total_batch_idx)
            seen.append((*counts, trainer.is_last_batch))

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.note(trainer)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.note(trainer)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.note(trainer)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.note(trainer)

    trainer = fit(Net(), data(2), max_epochs=2, callbacks=[Watches()])
    assert seen == [
        (0, 0, -1, -1, False),
        (0, 0, 0, 0, False),
        (0, 1, 1, 1, True),
        (0, 2, 1, 1, True),
        (1, 2, 0, 2, False),
        (1, 3, 1, 3, True),
        (1, 4, 1, 3, True),
        (2, 4, 1, 3, True),
    ]
    assert trainer.fit_loop.epoch_loop.batch_idx == 1


def test_evaluation_does_not_touch_the_counters_of_fit(fit: Any, ValNet: Any, data: Any) -> None:
    trainer = fit(ValNet(), data(3), data(2), max_epochs=2)
    before = (trainer.current_epoch, trainer.global_step, trainer.fit_loop.total_batch_idx)
    for call in ("validate", "test", "predict"):
        getattr(trainer, call)(trainer.lightning_module, data(4), **({"verbose": False} if call != "predict" else {}))
    assert (trainer.current_epoch, trainer.global_step, trainer.fit_loop.total_batch_idx) == before == (2, 6, 5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 2}, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 4),
        ({"max_epochs": 9, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 5}, 5),
        ({"max_epochs": -1}, float("inf")),
    ],
    ids=str,
)
def test_estimated_stepping_batches(quiet: Any, Net: Any, data: Any, arguments: dict[str, Any], expected: Any) -> None:
    class Asks(Net):
        def configure_optimizers(self) -> Any:
            self.estimate = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

        def on_train_start(self) -> None:
            self.trainer.should_stop = True

    module = Asks()
    quiet(**arguments).fit(module, data(3))
    assert module.estimate == expected


# ---------------------------------------------------------------------------------------------------- again


def test_a_second_fit_goes_on_from_the_counters(quiet: Any, Net: Any, data: Any, diary: Any) -> None:
    trainer, module = quiet(max_epochs=1, callbacks=[diary]), Net()
    trainer.fit(module, data(2))
    trainer.fit(module, data(2))
    assert (diary.text, trainer.global_step) == ("0.0 0.1 end", 2)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data(3))
    assert (diary.text, trainer.global_step) == ("0.0 0.1 end 1.0 1.1 1.2 end", 5)
    assert trainer.fit_loop.total_batch_idx == 4


def test_a_fit_that_was_stopped_inside_an_epoch_begins_the_next(quiet: Any, Net: Any, data: Any, diary: Any) -> None:
    trainer, module = quiet(max_epochs=3, callbacks=[diary]), Net()
    module.on_train_batch_end = lambda outputs, batch, batch_idx: setattr(trainer, "should_stop", batch_idx == 1)
    trainer.fit(module, data(3))
    assert (diary.text, trainer.should_stop) == ("0.0 0.1 end", True)
    module.on_train_batch_end = lambda outputs, batch, batch_idx: None
    trainer.fit(module, data(3))
    assert diary.text == "0.0 0.1 end 1.0 1.1 1.2 end 2.0 2.1 2.2 end"
    assert not trainer.should_stop


def test_an_exception_leaves_a_trainer_that_can_fit_again(quiet: Any, Net: Any, data: Any, diary: Any) -> None:
    class Fails(Net):
        fails = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 1 and self.fails:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    trainer, module = quiet(max_epochs=1, callbacks=[diary]), Fails()
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit(module, data(3))
    assert caught.value.__notes__ == ["During fit: epoch 0, batch 1, global step 1."]
    assert (trainer.interrupted, trainer.state.stage, torch.is_grad_enabled()) == (True, None, True)
    module.fails = False
    trainer.fit(module, data(3))
    assert (diary.text, trainer.global_step, trainer.state.finished) == ("0.0 0.0 0.1 0.2 end", 4, True)


def test_ctrl_c_ends_the_process_in_order(quiet: Any, Net: Any, data: Any) -> None:
    class Interrupted(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise KeyboardInterrupt

    trainer = quiet()
    with pytest.raises(SystemExit) as caught:
        trainer.fit(Interrupted(), data(2))
    assert (caught.value.code, trainer.interrupted) == (1, True)
