"""What each argument of the Trainer makes of it: callbacks, loggers, limits in a run, and what does not go together."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import fulmen
from fulmen import callbacks as battery
from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.loggers import CSVLogger, TensorBoardLogger
from fulmen.loggers.logger import DummyLogger

OFF = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


@pytest.fixture
def trainer(tmp_path):
    """Makes a trainer with everything off that is not asked for."""

    def make(**arguments: Any) -> fulmen.Trainer:
        return fulmen.Trainer(**{"accelerator": "cpu", "default_root_dir": tmp_path, **OFF, **arguments})

    return make


@pytest.fixture
def info(caplog):
    caplog.set_level("INFO", logger="fulmen")
    return lambda: [record.getMessage() for record in caplog.records]


class Net(fulmen.LightningModule):
    """Notes the index of each batch by its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["train"].append(batch_idx)
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["val"].append((dataloader_idx, batch_idx))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["test"].append((dataloader_idx, batch_idx))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return int(batch[0, 0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(torch.ones(4, 2))


def loader(batches: int = 4, **arguments: Any) -> DataLoader[Any]:
    rows = torch.arange(float(batches))[:, None].expand(-1, 2)
    return DataLoader(rows, **arguments)  # type: ignore[arg-type]


def kinds(objects: Any) -> list[str]:
    return [type(each).__name__ for each in objects]


# ---------------------------------------------------------------------------------------------------- callbacks


def test_the_callbacks_nobody_asked_for(tmp_path):
    assert kinds(fulmen.Trainer(accelerator="cpu", logger=False).callbacks) == [
        "RichProgressBar",
        "RichModelSummary",
        "ModelCheckpoint",
    ]


def test_tuners_come_first_and_checkpoints_last(trainer):
    given = [battery.ModelCheckpoint(), battery.EarlyStopping("loss"), battery.LearningRateFinder()]
    made = trainer(callbacks=given, enable_checkpointing=True, max_time="00:00:01:00")
    assert kinds(made.callbacks) == ["LearningRateFinder", "EarlyStopping", "Timer", "ModelCheckpoint"]


def test_one_callback_needs_no_list(trainer):
    callback = Callback()
    assert trainer(callbacks=callback).callbacks == [callback]
    assert trainer(callbacks=None).callbacks == trainer(callbacks=[]).callbacks == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callbacks": battery.ModelCheckpoint()}, r"enable_checkpointing=False\)`, but a checkpoint callback"),
        ({"callbacks": battery.OnExceptionCheckpoint(".")}, r"enable_checkpointing=False\)`, but a checkpoint"),
        ({"callbacks": battery.RichProgressBar()}, r"enable_progress_bar=False\)`, but RichProgressBar is among"),
        (
            {"callbacks": [battery.RichProgressBar(), battery.TQDMProgressBar()], "enable_progress_bar": True},
            "has 2 progress bars: RichProgressBar, TQDMProgressBar",
        ),
    ],
    ids=["checkpoint", "on exception", "bar", "two bars"],
)
def test_switches_and_callbacks_that_contradict_each_other(trainer, given, message):
    with pytest.raises(MisconfigurationException, match=message):
        trainer(**given)


@pytest.mark.parametrize(
    ("given", "switch"),
    [
        (battery.ModelCheckpoint(), "enable_checkpointing"),
        (battery.ModelSummary(), "enable_model_summary"),
        (battery.TQDMProgressBar(), "enable_progress_bar"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_users_own_takes_the_place_of_the_default(trainer, given, switch):
    assert trainer(callbacks=[given], **{switch: True}).callbacks == [given]


def test_a_summary_of_the_users_is_kept_without_the_switch(trainer):
    summary = battery.ModelSummary(max_depth=2)
    assert trainer(callbacks=[summary], enable_model_summary=False).callbacks == [summary]


def test_two_callbacks_of_one_state_are_refused(trainer):
    with pytest.raises(RuntimeError, match=r"Two callbacks have the state key \"EarlyStopping{'monitor': 'a', "):
        trainer(callbacks=[battery.EarlyStopping("a"), battery.EarlyStopping("a")])
    assert len(trainer(callbacks=[battery.EarlyStopping("a"), battery.EarlyStopping("b")]).callbacks) == 2
    assert len(trainer(callbacks=[Callback(), Callback()]).callbacks) == 2  # they have none


@pytest.mark.parametrize("given", ["00:00:00:10", timedelta(seconds=10), {"seconds": 10}], ids=str)
def test_max_time_is_a_timer(trainer, given):
    (timer,) = trainer(max_time=given).callbacks
    assert (type(timer), timer.time_remaining()) == (battery.Timer, 10)


def test_max_time_gives_way_to_a_timer_of_the_users(trainer, info):
    timer = battery.Timer(duration="00:01:00:00")
    assert trainer(max_time="00:00:00:10", callbacks=timer).callbacks == [timer]
    assert "`Trainer(max_time=...)` is ignored: a Timer is among the callbacks." in info()


@pytest.mark.parametrize("made", [Callback(), [Callback(), Callback()]], ids=["one", "several"])
def test_callbacks_of_installed_packages(trainer, monkeypatch, made):
    groups = {"lightning.pytorch.callbacks_factory": [SimpleNamespace(load=lambda: lambda: made)]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: groups[group])
    assert trainer().callbacks == (made if isinstance(made, list) else [made])


# ---------------------------------------------------------------------------------------------------- loggers


@pytest.mark.parametrize("given", [False, [], ()], ids=repr)
def test_no_logger(trainer, given):
    made = trainer(logger=given)
    assert (made.loggers, made.logger) == ([], None)


@pytest.mark.parametrize("given", [None, True], ids=repr)
def test_the_default_logger_is_for_tensorboard_where_that_is_installed(trainer, monkeypatch, given, info):
    assert kinds(trainer(logger=given).loggers) == ["TensorBoardLogger"]
    monkeypatch.setattr("fulmen.assemble.available", lambda name: False)
    made = trainer(logger=given)
    assert kinds(made.loggers) == ["CSVLogger"]
    assert made.logger.root_dir == os.path.join(made.default_root_dir, "lightning_logs")
    assert any("pip install tensorboard" in line for line in info())


def test_loggers_of_the_user(trainer, tmp_path):
    first, second = CSVLogger(tmp_path), TensorBoardLogger(tmp_path)
    assert trainer(logger=first).loggers == [first]
    made = trainer(logger=(first, second))
    assert (made.loggers, made.logger) == ([first, second], first)


@pytest.mark.parametrize("given", ["csv", 3, CSVLogger, [None]], ids=repr)
def test_what_is_no_logger(trainer, given):
    with pytest.raises(MisconfigurationException, match=r"was given .*, expected a `Logger`"):
        trainer(logger=given)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_trial_run_has_at_most_one_logger_which_does_nothing(trainer, tmp_path, number):
    made = trainer(fast_dev_run=True, logger=[CSVLogger(tmp_path)] * number)
    assert kinds(made.loggers) == ["DummyLogger"] * min(number, 1)
    assert all(isinstance(logger, DummyLogger) for logger in made.loggers)


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "min_epochs", "min_steps"])
@pytest.mark.parametrize(("given", "meant"), [(3, 3), (3.0, 3), (0, 0), (-1, -1), (float("inf"), -1)], ids=str)
def test_limits_of_a_run(trainer, name, given, meant):
    found = getattr(trainer(**{name: given}), name)
    assert (found, type(found)) == (meant, int)


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "min_epochs", "min_steps"])
@pytest.mark.parametrize("given", ["3", 1.5, -2, float("nan"), [1], True], ids=str)
def test_what_is_no_limit_of_a_run(trainer, name, given):
    with pytest.raises(MisconfigurationException, match=rf"`Trainer\({name}=.*expected a whole number of at least 0"):
        trainer(**{name: given})


@pytest.mark.parametrize(
    ("arguments", "train", "val"),
    [
        ({}, 4, 4),
        ({"limit_train_batches": 2, "limit_val_batches": 3}, 2, 3),
        ({"limit_train_batches": 9, "limit_val_batches": 1.0}, 4, 4),
        ({"limit_train_batches": 0.5, "limit_val_batches": 0.99}, 2, 3),
        ({"limit_train_batches": 1, "limit_val_batches": 0}, 1, 0),
        ({"limit_train_batches": 0, "limit_val_batches": 4}, 0, 0),
        ({"limit_train_batches": 0.0}, 0, 0),
        ({"limit_train_batches": 2.0, "limit_val_batches": 0.25}, 2, 1),
        ({"overfit_batches": 2, "limit_train_batches": 1, "limit_val_batches": 1}, 2, 2),
        ({"overfit_batches": 0.5}, 2, 2),
        ({"overfit_batches": 1}, 1, 1),
        ({"overfit_batches": 1.0}, 4, 4),
    ],
    ids=str,
)
def test_batches_of_a_fit(trainer, arguments, train, val):
    module = Net()
    trainer(max_epochs=1, num_sanity_val_steps=0, **arguments).fit(module, loader(), loader())
    assert [len(module.seen[stage]) for stage in ("train", "val")] == [train, val]


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (1.0, 4), (9, 4)])
def test_batches_of_a_stream(trainer, limit, batches):
    module = Net()
    arguments = {"limit_train_batches": limit, "limit_val_batches": limit}
    trainer(max_epochs=1, num_sanity_val_steps=0, **arguments).fit(module, DataLoader(Stream()), DataLoader(Stream()))
    assert [len(module.seen[stage]) for stage in ("train", "val")] == [batches, batches]


@pytest.mark.parametrize("argument", ["limit_train_batches", "limit_val_batches", "overfit_batches"])
def test_a_part_of_a_stream_is_not_known(trainer, argument):
    with pytest.raises(MisconfigurationException, match=rf"`{argument}=0.5` is a fraction, but .* not know its length"):
        trainer(max_epochs=1, **{argument: 0.5}).fit(Net(), DataLoader(Stream()), DataLoader(Stream()))


@pytest.mark.parametrize("argument", ["limit_train_batches", "limit_val_batches", "overfit_batches"])
def test_a_part_that_is_nothing_is_refused(trainer, argument):
    with pytest.raises(MisconfigurationException, match=rf"`{argument}=0.1` of 4 batches leaves none.*{argument}=0.25"):
        trainer(max_epochs=1, **{argument: 0.1}).fit(Net(), loader(), loader())


def test_limits_count_for_each_loader_of_a_test_and_a_prediction(trainer):
    module = Net()
    trainer(limit_test_batches=2).test(module, [loader(3), loader(1)], verbose=False)
    assert module.seen["test"] == [(0, 0), (0, 1), (1, 0)]
    made = trainer(limit_predict_batches=0.5)
    assert made.predict(module, [loader(2), loader(4)]) == [[0], [0, 1]]


def test_overfitting_leaves_test_and_prediction_alone(trainer):
    module = Net()
    made = trainer(overfit_batches=1)
    made.test(module, loader(3), verbose=False)
    assert len(module.seen["test"]) == 3
    assert made.predict(module, loader(3)) == [0, 1, 2]


def test_overfitting_puts_the_samples_of_a_fit_in_order(trainer):
    order = []

    class Watches(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            order.append(int(batch[0, 0]))

    made = trainer(overfit_batches=3, max_epochs=2, callbacks=Watches())
    with pytest.warns(UserWarning, match="samplers that shuffle or choose are replaced"):
        made.fit(Net(), loader(8, shuffle=True), loader(8))
    assert order == [0, 1, 2, 0, 1, 2]


def test_overfitting_does_not_change_the_order_of_a_validation_of_its_own(trainer):
    module = Net()
    made = trainer(overfit_batches=2)
    with pytest.warns(PossibleUserWarning, match="The val loader shuffles"):
        made.validate(module, loader(8, shuffle=True), verbose=False)
    assert len(module.seen["val"]) == 2


@pytest.mark.parametrize(("given", "batches"), [(True, 1), (3, 3)])
def test_a_trial_run_runs_a_few_batches_of_each_loop(trainer, given, batches):
    module = Net()
    made = trainer(fast_dev_run=given, max_epochs=7)
    made.fit(module, loader(9), loader(9))
    made.test(module, loader(9), verbose=False)
    assert {stage: len(seen) for stage, seen in module.seen.items()} == dict.fromkeys(module.seen, batches)
    assert made.predict(module, loader(9)) == list(range(batches))
    assert (made.current_epoch, made.global_step) == (1, batches)


# ---------------------------------------------------------------------------------------------------- the rest


def test_benchmark_and_deterministic_together_warn(trainer):
    for value in (True, "warn"):
        with pytest.warns(UserWarning, match=r"deterministic=.*, benchmark=True\)`.*Leave `benchmark` out"):
            trainer(deterministic=value, benchmark=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(deterministic=True, benchmark=False)
        trainer(deterministic=False, benchmark=True)


def test_each_setting_can_be_read_on_the_trainer(trainer):
    given = {
        "accumulate_grad_batches": 3,
        "check_val_every_n_epoch": 2,
        "detect_anomaly": True,
        "enable_autolog_hparams": False,
        "gradient_clip_algorithm": "value",
        "gradient_clip_val": 0.5,
        "inference_mode": False,
        "log_every_n_steps": 7,
        "num_sanity_val_steps": 4,
        "reload_dataloaders_every_n_epochs": 5,
        "use_distributed_sampler": False,
        "val_check_interval": 0.25,
    }
    made = trainer(**given)
    assert {name: getattr(made, name) for name in given} == given


@pytest.mark.parametrize("name", ["simple", "ADVANCED", "PyTorch"])
def test_profilers_by_name(trainer, name):
    assert type(trainer(profiler=name).profiler).__name__.lower() == f"{name.lower()}profiler"


@pytest.mark.parametrize("given", ["nope", 1], ids=repr)
def test_what_is_no_profiler(trainer, given):
    with pytest.raises(MisconfigurationException, match=r"expected one of .*'simple', 'advanced', 'pytorch', 'xla'"):
        trainer(profiler=given)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_new_modules_in_the_precision_of_the_run(trainer, precision, dtype):
    with trainer(precision=precision).init_module():
        layer = torch.nn.Linear(1, 1)
    assert (layer.weight.dtype, layer.weight.device.type) == (dtype, "cpu")
    assert torch.get_default_dtype() == torch.float32


def test_barebones_is_bare(tmp_path):
    made = fulmen.Trainer(accelerator="cpu", barebones=True, default_root_dir=tmp_path)
    assert (made.loggers, made.callbacks, made.log_every_n_steps, made.num_sanity_val_steps) == ([], [], 0, 0)


@pytest.mark.parametrize("name", ["auto", "Auto", "AUTO", "Single_Device"])
def test_a_strategy_by_its_name_in_any_case(trainer, name):
    assert type(trainer(strategy=name).strategy).__name__ == "SingleDeviceStrategy"


def test_what_deterministic_can_be(trainer):
    with pytest.raises(MisconfigurationException, match=r"deterministic='yes'.*expected True, False or 'warn'"):
        trainer(deterministic="yes")
