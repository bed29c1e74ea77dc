"""When learning-rate schedulers step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import fulmen
from fulmen.errors import MisconfigurationException


class Rates(fulmen.Callback):
    """Notes the learning rate of each batch, of each validation and at the end, as powers of ten below 1."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def note(self, trainer: Any, prefix: str = "") -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.words.append(prefix + str(len(f"{1 / rate:.0f}") - 1))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.note(trainer)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.note(trainer, "last ")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.note(trainer, "val ")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.note(trainer, "end ")


def rates(fit: Any, module: Any, *loaders: Any, **arguments: Any) -> str:
    """The learning rates in the course of a fit: 0 for 1, 1 for 0.1, 2 for 0.01, ..."""
    callback = Rates()
    fit(module, *loaders, callbacks=[callback], **arguments)
    return ", ".join(callback.words)


def stepping(base: type[Any], **settings: Any) -> Any:
    """A module whose learning rate falls to a tenth with each step of its scheduler."""

    class Falls(base):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1, 0.1), **settings}}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0 * super().training_step(batch, batch_idx)

    return Falls()


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        ({}, {}, "0, 0, 0, last 1, end 1, 1, 1, 1, last 2, end 2"),
        ({"interval": "epoch", "frequency": 2}, {}, "0, 0, 0, last 0, end 0, 0, 0, 0, last 1, end 1"),
        ({"interval": "step"}, {}, "0, 1, 2, last 3, end 3, 3, 4, 5, last 6, end 6"),
        ({"interval": "step", "frequency": 2}, {}, "0, 0, 1, last 1, end 1, 1, 1, 2, last 2, end 2"),
        (
            {"interval": "step"},
            {"accumulate_grad_batches": 2},
            "0, 0, 1, last 2, end 2, 2, 2, 3, last 4, end 4",
        ),
        (
            {"interval": "step", "frequency": 2},
            {"accumulate_grad_batches": 2},
            "0, 0, 1, last 1, end 1, 1, 1, 2, last 2, end 2",
        ),
        ({"interval": "epoch"}, {"max_steps": 2}, "0, 0, end 0"),
        ({"interval": "step"}, {"max_steps": 2}, "0, 1, end 2"),
    ],
    ids=str,
)
def test_plain_schedulers(fit: Any, Net: Any, data: Any, settings: Any, arguments: Any, expected: str) -> None:
    assert rates(fit, stepping(Net, **settings), data(3), max_epochs=2, **arguments) == expected


def test_epoch_schedulers_step_before_the_validation_of_the_epoch(fit: Any, ValNet: Any, data: Any) -> None:
    assert rates(fit, stepping(ValNet), data(2), data(1)) == "0, 0, last 1, val 1, end 1"


def test_several_schedulers(fit: Any, Net: Any, data: Any) -> None:
    class Both(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedulers = [StepLR(optimizer, 1, 0.1), {"scheduler": StepLR(optimizer, 1, 0.1), "interval": "step"}]
            return [optimizer], schedulers

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0 * super().training_step(batch, batch_idx)

    module = Both()
    assert rates(fit, module, data(2), max_epochs=2) == "0, 1, last 3, end 3, 3, 4, last 6, end 6"
    assert [type(scheduler) for scheduler in module.lr_schedulers()] == [StepLR, StepLR]


def test_a_skipped_epoch_steps_its_schedulers(fit: Any, Net: Any, data: Any) -> None:
    for settings, expected in [({}, "0, 0, end 1"), ({"interval": "step"}, "0, 1, end 2")]:
        module = stepping(Net, **settings)
        module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 1 else None
        assert rates(fit, module, data(3)) == expected


def test_a_skip_closes_the_window(fit: Any, Net: Any, data: Any) -> None:
    module = stepping(Net, interval="step")
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 2 else None
    assert rates(fit, module, data(4), accumulate_grad_batches=2) == "0, 0, 1, end 2"


def test_nothing_steps_in_manual_optimisation(fit: Any, Net: Any, data: Any) -> None:
    module = stepping(Net, interval="step")
    module.automatic_optimization = False
    assert rates(fit, module, data(2)) == "0, 0, last 0, end 0"


# ---------------------------------------------------------------------------------------------------- on a plateau


def plateau(base: type[Any], monitor: str = "val", **settings: Any) -> Any:
    """A module whose learning rate falls to a tenth whenever its scheduler sees no improvement: from the second on."""

    class Falls(base):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
            entry = {"scheduler": scheduler, "monitor": monitor, **settings}
            return {"optimizer": optimizer, "lr_scheduler": entry}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train", 1.0)
            return 0 * super().training_step(batch, batch_idx)

    return Falls()


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        ({}, {}, "0, 0, last 0, val 0, end 0, 0, 0, last 0, val 0, end 0, 1, 1, last 1, val 1, end 1"),
        (
            {"frequency": 2},
            {"max_epochs": 5, "limit_train_batches": 1, "limit_val_batches": 0, "monitor": "train"},
            "0, last 0, end 0, 0, last 0, end 0, 0, last 0, end 0, 0, last 0, end 0, 1, last 1, end 1",
        ),
        (
            {"interval": "step"},
            {"val_check_interval": 1, "max_epochs": 1, "limit_train_batches": 3},
            "0, val 0, 0, val 0, 1, last 1, val 1, end 2",
        ),
        (
            {"interval": "step", "monitor": "train"},
            {"limit_val_batches": 0, "max_epochs": 1, "accumulate_grad_batches": 2, "limit_train_batches": 6},
            "0, 0, 0, 0, 1, 1, last 1, end 2",
        ),
    ],
    ids=str,
)
def test_plateau(fit: Any, ValNet: Any, data: Any, settings: Any, arguments: Any, expected: str) -> None:
    arguments = {"max_epochs": 3, "limit_train_batches": 2, **arguments}
    monitor = arguments.pop("monitor", settings.get("monitor", "val"))
    module = plateau(ValNet, **{**settings, "monitor": monitor})
    assert rates(fit, module, data(6), data(1), **arguments) == expected


def test_an_epoch_that_was_cut_short_is_no_plateau(fit: Any, Net: Any, data: Any) -> None:
    module = plateau(Net, "train")
    assert rates(fit, module, data(2), max_epochs=3, max_steps=5).endswith("1, end 1")
    module = plateau(Net, "train")
    module.on_train_batch_end = lambda outputs, batch, batch_idx: setattr(module.trainer, "should_stop", True)
    assert rates(fit, module, data(2), max_epochs=4, min_epochs=3).endswith("1, end 1")


@pytest.mark.parametrize("at", [1, 3])
def test_an_epoch_of_which_the_rest_was_skipped_is_a_plateau(fit: Any, Net: Any, data: Any, at: int) -> None:
    module = plateau(Net, "train")
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == at else None
    assert rates(fit, module, data(4), max_epochs=3).endswith("1, end 1")
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_value_logged_at_the_end_of_the_epoch_can_be_monitored(fit: Any, Net: Any, data: Any) -> None:
    module, seen = plateau(Net, "late"), []
    module.on_train_epoch_end = lambda: module.log("late", float(module.current_epoch))
    module.lr_scheduler_step = lambda scheduler, metric: seen.append(float(metric))
    fit(module, data(1), max_epochs=3)
    assert seen == [0.0, 1.0, 2.0]


def test_a_missing_monitor(fit: Any, Net: Any, data: Any) -> None:
    message = r"`ReduceLROnPlateau` monitors 'loss'.* Logged so far: \['train'\]"
    with pytest.raises(MisconfigurationException, match=message):
        fit(plateau(Net, "loss"), data(1))
    with pytest.warns(RuntimeWarning, match=message):
        assert rates(fit, plateau(Net, "loss", strict=False), data(1)) == "0, last 0, end 0"


def test_any_scheduler_can_be_made_one_that_takes_a_metric(fit: Any, Net: Any, data: Any) -> None:
    module, calls = stepping(Net, reduce_on_plateau=True, monitor="m"), []
    module.on_train_epoch_end = lambda: module.log("m", 5.0)
    module.lr_scheduler_step = lambda scheduler, metric: calls.append((type(scheduler), float(metric)))
    fit(module, data(1))
    assert calls == [(StepLR, 5.0)]


# ---------------------------------------------------------------------------------------------------- own


class Foreign:
    """A scheduler of another package: it has a state, and steps in its own way."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.updates: list[int] = []

    def step_update(self, num_updates: int) -> None:
        self.updates.append(num_updates)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]


def test_lr_scheduler_step_steps_a_foreign_scheduler(fit: Any, Net: Any, data: Any) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.scheduler = Foreign(optimizer)
            return [optimizer], [{"scheduler": self.scheduler, "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            assert metric is None
            scheduler.step_update(self.global_step)

    module = Own()
    fit(module, data(3))
    assert module.scheduler.updates == [1, 2, 3]
    assert module.lr_schedulers() is module.scheduler


def test_a_foreign_scheduler_needs_lr_scheduler_step(fit: Any, Net: Any, data: Any) -> None:
    class Lacks(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [Foreign(optimizer)]

    with pytest.raises(MisconfigurationException, match=r"`Foreign` is not a torch scheduler.*lr_scheduler_step"):
        fit(Lacks(), data(1))
