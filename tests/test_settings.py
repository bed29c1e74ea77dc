from __future__ import annotations

import inspect
import os
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import fulmen
from fulmen.errors import MisconfigurationException
from fulmen.settings import defaults_from_environment, limit, read

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(inspect.unwrap(fulmen.Trainer.__init__)).parameters.items()
    if name != "self"
}


def settings(**given: Any) -> dict[str, Any]:
    return read({**DEFAULTS, **given})


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level("INFO", logger="fulmen")
    return lambda: [record.getMessage() for record in caplog.records]


# ---------------------------------------------------------------------------------------------------- defaults


def test_what_none_stands_for() -> None:
    chosen = settings()
    assert chosen["logger"] is chosen["enable_checkpointing"] is chosen["enable_progress_bar"] is True
    assert (chosen["num_sanity_val_steps"], chosen["log_every_n_steps"]) == (2, 50)
    assert [chosen[f"limit_{stage}_batches"] for stage in ("train", "val", "test", "predict")] == [1.0] * 4
    assert (chosen["val_check_interval"], chosen["val_check_seconds"]) == (1.0, None)
    assert (chosen["max_epochs"], chosen["min_epochs"], chosen["max_steps"]) == (None, None, -1)
    assert chosen["default_root_dir"] == os.getcwd()


def test_the_given_dictionary_is_left_alone() -> None:
    given = dict(DEFAULTS)
    read(given)
    assert given == DEFAULTS


@pytest.mark.parametrize(("given", "root"), [("a/../b", "b"), (Path("x"), "x"), ("s3://b/../c", "s3://b/../c")])
def test_root(given: Any, root: str) -> None:
    assert settings(default_root_dir=given)["default_root_dir"] == root


def test_root_may_be_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings(default_root_dir="~/runs")["default_root_dir"] == str(tmp_path / "runs")


# ---------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("value", "meant"), [(0, 0), (3, 3), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 2), (7.0, 7)], ids=str
)
def test_limit(value: float, meant: float) -> None:
    found = limit("limit_val_batches", value)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize("value", [-1, -0.1, 1.5, "all", True, [1], float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["limit_train_batches", "limit_predict_batches", "overfit_batches"])
def test_what_is_no_limit(name: str, value: Any) -> None:
    with pytest.raises(
        MisconfigurationException, match=f"{name}={re.escape(repr(value))}.*number of batches.*or a fraction"
    ):
        settings(**{name: value})


def test_one_batch_is_not_the_whole(info: Any) -> None:
    settings(limit_train_batches=1)
    assert info() == ["`Trainer(limit_train_batches=1)` means one batch; for all of them write 1.0."]


def test_overfitting_limits_training_and_validation() -> None:
    chosen = settings(overfit_batches=3, limit_val_batches=5, limit_test_batches=6)
    assert [chosen[f"limit_{stage}_batches"] for stage in ("train", "val", "test")] == [3, 3, 6]
    assert settings(overfit_batches=0.0, limit_val_batches=5)["limit_val_batches"] == 5


@pytest.mark.parametrize(("value", "batches"), [(True, 1), (1, 1), (7, 7)])
def test_fast_dev_run(value: Any, batches: int, info: Any) -> None:
    chosen = settings(fast_dev_run=value, max_epochs=9, max_steps=100, val_check_interval=2, check_val_every_n_epoch=3)
    assert chosen["fast_dev_run"] is value
    assert [chosen[f"limit_{stage}_batches"] for stage in ("train", "val", "test", "predict")] == [batches] * 4
    assert (chosen["max_steps"], chosen["max_epochs"], chosen["num_sanity_val_steps"]) == (batches, 1, 0)
    assert (chosen["val_check_interval"], chosen["check_val_every_n_epoch"]) == (1.0, 1)
    assert f"{batches} batch(es) of each loop" in info()[-1]


@pytest.mark.parametrize("value", [-1, 1.0, "yes"], ids=str)
def test_what_is_no_fast_dev_run(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="fast_dev_run="):
        settings(fast_dev_run=value)


def test_overfitting_limits_a_fast_dev_run_too() -> None:
    made = settings(fast_dev_run=3, overfit_batches=2)
    assert [made[f"limit_{stage}_batches"] for stage in ("train", "val", "test", "predict")] == [2, 2, 3, 3]
    assert (made["max_steps"], made["max_epochs"]) == (3, 1)


@pytest.mark.parametrize("value", [0, False, None], ids=str)
def test_no_fast_dev_run(value: Any) -> None:
    chosen = settings(fast_dev_run=value, max_epochs=3)
    assert (chosen["max_epochs"], chosen["fast_dev_run"]) == (3, False)


@pytest.mark.parametrize(
    "given",
    [
        {"max_epochs": -2},
        {"max_steps": -2},
        {"accumulate_grad_batches": 0},
        {"accumulate_grad_batches": 1.5},
        {"accumulate_grad_batches": {0: 1}},
        {"reload_dataloaders_every_n_epochs": -1},
        {"log_every_n_steps": -1},
        {"check_val_every_n_epoch": 0},
        {"check_val_every_n_epoch": 1.0},
    ],
    ids=str,
)
def test_counts_that_are_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(MisconfigurationException, match=f"`Trainer\\({name}=.*expected a whole number of at least"):
        settings(**given)


def test_no_max_steps_is_minus_one() -> None:
    with pytest.raises(TypeError, match=r"max_steps=None.*-1 for no limit"):
        settings(max_steps=None)


def test_a_schedule_of_accumulation_is_a_callback() -> None:
    with pytest.raises(MisconfigurationException, match="GradientAccumulationScheduler"):
        settings(accumulate_grad_batches={4: 2})


def test_all_sanity_steps() -> None:
    assert settings(num_sanity_val_steps=-1)["num_sanity_val_steps"] == float("inf")


# ---------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("00:00:01:30", 90), ({"hours": 2, "minutes": 1}, 7260), (timedelta(seconds=5), 5), ("01:00:00:00", 86400)],
    ids=str,
)
def test_validation_by_time(value: Any, seconds: float) -> None:
    assert settings(val_check_interval=value)["val_check_seconds"] == seconds
    assert settings(val_check_interval=value, check_val_every_n_epoch=None)["val_check_seconds"] == seconds


@pytest.mark.parametrize("value", [0, -1, 1.5, -0.5, 0.0, True], ids=str)
def test_what_is_no_interval(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="val_check_interval="):
        settings(val_check_interval=value)


@pytest.mark.parametrize("value", [0.5, 1.0], ids=str)
def test_batches_over_epochs_are_no_fraction(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=rf"val_check_interval={value}, check_val_every_n_epoch=None"):
        settings(val_check_interval=value, check_val_every_n_epoch=None)
    assert settings(val_check_interval=7, check_val_every_n_epoch=None)["val_check_interval"] == 7
    assert settings(val_check_interval=None, check_val_every_n_epoch=None)["val_check_interval"] == 1.0


def test_a_whole_number_above_one_is_a_number_of_batches() -> None:
    found = settings(val_check_interval=2.0)["val_check_interval"]
    assert (found, type(found)) == (2, int)


# ---------------------------------------------------------------------------------------------------- clipping


class Algorithm(StrEnum):
    NORM = "norm"


@pytest.mark.parametrize(
    ("given", "meant"), [("norm", "norm"), ("VALUE", "value"), (Algorithm.NORM, "norm"), (None, None)]
)
def test_clipping(given: Any, meant: Any) -> None:
    assert settings(gradient_clip_val=1, gradient_clip_algorithm=given)["gradient_clip_algorithm"] == meant


def test_clipping_that_is_refused() -> None:
    with pytest.raises(TypeError, match=r"gradient_clip_val='1'.*expected a number"):
        settings(gradient_clip_val="1")
    with pytest.raises(MisconfigurationException, match=r"'inf'.*expected 'norm' or 'value'"):
        settings(gradient_clip_algorithm="inf")


# ---------------------------------------------------------------------------------------------------- barebones


def test_barebones(info: Any) -> None:
    chosen = settings(barebones=True)
    off = ("enable_checkpointing", "logger", "enable_progress_bar", "enable_model_summary")
    assert not any(chosen[name] for name in off)
    assert (chosen["num_sanity_val_steps"], chosen["log_every_n_steps"]) == (0, 0)
    assert "self.log" in info()[0]


@pytest.mark.parametrize(
    "given",
    [
        {"enable_checkpointing": True},
        {"logger": True},
        {"enable_progress_bar": True},
        {"enable_model_summary": True},
        {"log_every_n_steps": 1},
        {"num_sanity_val_steps": 1},
        {"fast_dev_run": True},
        {"detect_anomaly": True},
        {"profiler": "simple"},
    ],
    ids=str,
)
def test_what_barebones_excludes(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))}={next(iter(given.values()))!r} asks for more"):
        settings(barebones=True, **given)
    settings(barebones=True, **dict.fromkeys(given, False))


# ---------------------------------------------------------------------------------------------------- environment


class Configured:
    @defaults_from_environment
    def __init__(self, *, first: Any = None, second: Any = 2, third: Any = "c") -> None:
        self.values = (first, second, third)


def test_arguments_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_CONFIGURED_FIRST", "[1, 2]")
    monkeypatch.setenv("PL_CONFIGURED_SECOND", "")
    monkeypatch.setenv("PL_CONFIGURED_THIRD", "16-mixed")
    assert Configured().values == ([1, 2], 2, "16-mixed")
    assert Configured(first=None, third=3).values == (None, 2, 3)


def test_a_subclass_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(Configured):
        pass

    monkeypatch.setenv("PL_CONFIGURED_FIRST", "1")
    monkeypatch.setenv("PL_SPECIAL_SECOND", "5")
    assert Special().values == (None, 5, "c")


def test_positional_arguments_are_taken_by_order() -> None:
    assert Configured(7, 8).values == (7, 8, "c")
    with pytest.raises(TypeError, match="fourth"):
        Configured(fourth=1)


def test_the_trainer_reads_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "cpu")
    monkeypatch.setenv("PL_TRAINER_LOGGER", "False")
    trainer = fulmen.Trainer()
    assert (trainer.max_epochs, trainer.loggers) == (7, [])
    assert fulmen.Trainer(max_epochs=3).max_epochs == 3
