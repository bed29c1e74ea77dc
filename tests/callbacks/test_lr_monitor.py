from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, StepLR

import fulmen
from fulmen.callbacks import LearningRateMonitor
from fulmen.errors import MisconfigurationException


class Recorder:
    """A logger that keeps what it is given."""

    name = "recorder"
    version = 0
    save_dir = log_dir = root_dir = None
    group_separator = "/"
    experiment = None

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: None


class Two(fulmen.LightningModule):
    """Two layers; what ``configure_optimizers`` returns is made from them."""

    def __init__(self, optimizers: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 1), nn.Linear(2, 1)
        self.optimizers_of = optimizers

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        loss = (self.first(batch) + self.second(batch)).pow(2).mean()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.optimizers_of(self)


def run(optimizers: Any, epochs: int = 1, every: int = 1, manual: bool = False, **arguments: Any) -> Any:
    """Trains on two batches an epoch; returns the rows of the logger, the callback, and the trainer."""
    logger, monitor = Recorder(), LearningRateMonitor(**arguments)
    module = Two(optimizers)
    module.automatic_optimization = not manual
    trainer = fulmen.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=every,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.ones(2, 1, 2))
    return logger.rows, monitor, trainer


def plain(module: Two) -> SGD:
    return SGD(module.parameters(), 0.5, momentum=0.75)


def scheduled(**config: Any) -> Any:
    def make(module: Two) -> dict[str, Any]:
        optimizer = plain(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1, 0.5), **config}}

    return make


def pair(module: Two) -> list[SGD]:
    return [SGD(module.first.parameters(), 0.5), SGD(module.second.parameters(), 0.25)]


def test_a_bad_interval() -> None:
    with pytest.raises(MisconfigurationException, match=r"logging_interval='batch'.*'step', 'epoch', or None"):
        LearningRateMonitor(logging_interval="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("interval", "x"), [(None, [0, 0, 1, 2, 2, 3]), ("step", [0, 1, 2, 3]), ("epoch", [0, 2])])
def test_without_scheduler(interval: Any, x: list[int]) -> None:
    rows, monitor, trainer = run(plain, epochs=2, logging_interval=interval)
    assert rows == [(step, {"lr-SGD": 0.5}) for step in x]
    assert monitor.lrs == {"lr-SGD": [0.5] * len(x)}
    assert monitor.last_momentum_values == {"lr-SGD-momentum": None}
    assert monitor.last_weight_decay_values == {"lr-SGD-weight_decay": None}
    assert trainer.callback_metrics["lr-SGD"] == 0.5


@pytest.mark.parametrize(
    ("config", "interval", "expected"),
    [
        ({}, None, [(0, 0.5), (2, 0.25)]),
        ({"interval": "step"}, None, [(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.0625)]),
        ({"interval": "step"}, "epoch", [(0, 0.5), (2, 0.125)]),
        ({}, "step", [(0, 0.5), (1, 0.5), (2, 0.25), (3, 0.25)]),
    ],
)
def test_a_scheduler_is_logged_by_its_own_interval(config: Any, interval: Any, expected: Any) -> None:
    rows, _, _ = run(scheduled(**config), epochs=2, logging_interval=interval)
    assert rows == [(step, {"lr-SGD": rate}) for step, rate in expected]


def test_steps_are_logged_when_loggers_are_due() -> None:
    rows, _, _ = run(scheduled(interval="step"), epochs=2, every=2)
    assert rows == [(1, {"lr-SGD": 0.25}), (3, {"lr-SGD": 0.0625})]


def test_the_name_of_the_configuration_and_a_prefix() -> None:
    rows, _, _ = run(scheduled(name="rate"))
    assert rows == [(0, {"rate": 0.5})]
    rows, _, _ = run(scheduled(), log_key_prefix="optim/")
    assert rows == [(0, {"optim/lr-SGD": 0.5})]


def test_the_same_class_twice() -> None:
    rows, _, _ = run(pair, manual=True, logging_interval="epoch")
    assert rows == [(0, {"lr-SGD": 0.5, "lr-SGD-1": 0.25})]


def test_schedulers_come_before_optimizers_without() -> None:
    def second_only(module: Two) -> Any:
        optimizers = pair(module)
        return optimizers, [StepLR(optimizers[1], 1)]

    rows, _, _ = run(second_only, manual=True)
    assert rows == [(0, {"lr-SGD": 0.25, "lr-SGD-1": 0.5}), (0, {"lr-SGD-1": 0.5}), (1, {"lr-SGD-1": 0.5})]


def test_two_schedulers_of_one_optimizer() -> None:
    def both(module: Two) -> Any:
        optimizer = plain(module)
        linear = {"scheduler": LinearLR(optimizer, 0.5), "interval": "step", "name": "linear"}
        return [optimizer], [StepLR(optimizer, 1), linear]

    rows, _, _ = run(both)
    assert [(step, list(values)) for step, values in rows] == [(0, ["lr-SGD"]), (0, ["linear"]), (1, ["linear"])]


def test_several_classes() -> None:
    def different(module: Two) -> Any:
        return [SGD(module.first.parameters(), 0.5), Adam(module.second.parameters(), 0.25)]

    rows, _, _ = run(different, manual=True, logging_interval="epoch")
    assert rows == [(0, {"lr-SGD": 0.5, "lr-Adam": 0.25})]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((None, None), {"lr-SGD/pg1": 0.5, "lr-SGD/pg2": 0.5}),
        (("a", "b"), {"lr-SGD/a": 0.5, "lr-SGD/b": 0.5}),
        (("a", None), {"lr-SGD/a": 0.5, "lr-SGD/pg2": 0.5}),
        (("a",), {"lr-SGD/a": 0.5}),
    ],
)
def test_parameter_groups(names: tuple[str | None, ...], expected: dict[str, float]) -> None:
    def grouped(module: Two) -> SGD:
        parts = zip([module.first, module.second], names, strict=False)
        return SGD([{"params": part.parameters(), **({"name": name} if name else {})} for part, name in parts], 0.5)

    rows, monitor, _ = run(grouped, logging_interval="epoch")
    assert rows == [(0, expected)]
    assert monitor.lrs == {name: [rate] for name, rate in expected.items()}


def test_groups_of_the_same_name() -> None:
    def twins(module: Two) -> SGD:
        return SGD([{"params": part.parameters(), "name": "a"} for part in (module.first, module.second)], 0.5)

    with pytest.raises(MisconfigurationException, match="several parameter groups named 'a'"):
        run(twins)


def test_a_group_that_is_added_later() -> None:
    class Growing(Two):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": list(self.second.parameters())})

    logger, monitor = Recorder(), LearningRateMonitor("epoch")
    trainer = fulmen.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Growing(lambda module: SGD(module.first.parameters(), 0.5)), torch.ones(2, 1, 2))
    assert logger.rows[-1] == (4, {"lr-SGD/pg1": 0.5, "lr-SGD/pg2": 0.5})
    assert monitor.lrs == {"lr-SGD/pg1": [0.5] * 3, "lr-SGD/pg2": [0.5]}


def test_momentum_and_weight_decay() -> None:
    options = {"log_momentum": True, "log_weight_decay": True, "logging_interval": "epoch"}
    rows, monitor, trainer = run(plain, **options)
    assert rows == [(0, {"lr-SGD": 0.5, "lr-SGD-momentum": 0.75, "lr-SGD-weight_decay": 0})]
    assert monitor.last_momentum_values == {"lr-SGD-momentum": 0.75}
    assert monitor.last_weight_decay_values == {"lr-SGD-weight_decay": 0}
    assert trainer.callback_metrics["lr-SGD-momentum"] == 0.75
    rows, _, _ = run(lambda module: AdamW(module.parameters(), 0.5), **options)
    assert rows == [(0, {"lr-AdamW": 0.5, "lr-AdamW-momentum": 0.9, "lr-AdamW-weight_decay": 0.01})]


def test_momentum_where_there_is_none() -> None:
    with pytest.warns(RuntimeWarning, match="have no momentum"):
        rows, _, _ = run(lambda module: Adagrad(module.parameters(), 0.5), log_momentum=True, logging_interval="epoch")
    assert rows == [(0, {"lr-Adagrad": 0.5, "lr-Adagrad-momentum": 0})]


def test_a_scheduler_on_a_plateau() -> None:
    def plateau(module: Two) -> Any:
        optimizer = plain(module)
        config = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "lr-SGD", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    rows, _, _ = run(plateau)
    assert rows == [(0, {"lr-SGD": 0.5})]


def test_a_logger_is_needed() -> None:
    trainer = fulmen.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[LearningRateMonitor()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(MisconfigurationException, match=r"needs a logger.*Trainer\(logger=True\)"):
        trainer.fit(Two(plain), torch.ones(2, 1, 2))


@pytest.mark.parametrize(
    ("interval", "every", "listens"), [(None, 1, True), ("step", 1, True), ("epoch", 1, False), ("step", 0, False)]
)
def test_the_batch_loop_knows_it_only_when_it_logs_by_step(interval: Any, every: int, listens: bool) -> None:
    _, _, trainer = run(plain, every=every, logging_interval=interval)
    assert bool(trainer.hooks.on_train_batch_start) == listens
