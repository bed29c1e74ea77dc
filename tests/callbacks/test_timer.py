from __future__ import annotations

import time
from datetime import timedelta

import pytest

from fulmen.callbacks import Timer
from fulmen.errors import MisconfigurationException


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("00:00:00:05", 5),
        ("01:02:03:04", 93784),
        ("00:25:00:00", 90000),
        (timedelta(seconds=4), 4),
        ({"minutes": 2}, 120),
    ],
)
def test_spellings_of_a_duration(duration: object, seconds: float) -> None:
    assert Timer(duration).time_remaining() == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("duration", ["5", "00:00:05", "a:b:c:d", "", 5, {"fortnights": 1}])
def test_a_bad_duration(duration: object) -> None:
    with pytest.raises(MisconfigurationException, match="is not a duration"):
        Timer(duration)  # type: ignore[arg-type]


@pytest.mark.parametrize("interval", ["batch", None, ""])
def test_a_bad_interval(interval: object) -> None:
    with pytest.raises(MisconfigurationException, match=r"Timer\(interval=.*'step'.*'epoch'"):
        Timer(interval=interval)  # type: ignore[arg-type]


def test_before_a_run_no_time_has_passed() -> None:
    timer = Timer()
    assert timer.time_elapsed() == 0
    assert timer.time_remaining() is None
    assert timer.start_time() is timer.end_time() is None
    with pytest.raises(ValueError, match="nonsense"):
        timer.time_elapsed("nonsense")


def test_state_goes_round() -> None:
    timer = Timer(timedelta(seconds=100))
    timer.load_state_dict({"time_elapsed": {"train": 30.0}})
    assert timer.time_elapsed() == 30
    assert timer.time_remaining() == 70
    assert timer.state_dict() == {
        "time_elapsed": {"train": 30.0, "sanity_check": 0.0, "validate": 0.0, "test": 0.0, "predict": 0.0}
    }


def test_no_time_at_all_trains_nothing(fit, scripted, info) -> None:
    trainer = fit(scripted(), Timer(timedelta(0)))
    assert trainer.global_step == 0
    assert "Time limit reached. Elapsed time is 0:00:00. Signaling Trainer to stop." in info()


def test_a_resumed_run_without_time_left(fit, scripted) -> None:
    timer = Timer(timedelta(seconds=100))
    timer.load_state_dict({"time_elapsed": {"train": 200.0}})
    assert fit(scripted(), timer).global_step == 0
    assert timer.time_elapsed() == 200


@pytest.mark.parametrize(("interval", "steps"), [("step", 2), ("epoch", 4)])
def test_where_training_ends(fit, scripted, interval: str, steps: int) -> None:
    class Slow(scripted):
        def training_step(self, batch, batch_idx):
            if self.steps == 1:
                time.sleep(0.3)
            return super().training_step(batch, batch_idx)

    assert fit(Slow(), Timer(timedelta(seconds=0.25), interval=interval)).global_step == steps


def test_it_reports_once_even_if_training_has_to_go_on(fit, scripted, info) -> None:
    assert fit(scripted(), Timer(timedelta(0)), min_epochs=2).global_step == 8
    assert sum("Time limit reached" in line for line in info()) == 1


def test_it_can_be_silent(fit, scripted, info) -> None:
    fit(scripted(), Timer(timedelta(0), verbose=False))
    assert not any("Time limit" in line for line in info())


def test_stages_are_measured(fit, scripted) -> None:
    timer = Timer()
    trainer = fit(scripted(), timer, num_sanity_val_steps=1, max_epochs=1)
    for stage in ("train", "validate", "sanity_check"):
        assert timer.time_elapsed(stage) == timer.end_time(stage) - timer.start_time(stage) > 0
    assert timer.end_time("sanity_check") <= timer.start_time("train") < timer.start_time("validate")
    assert timer.time_elapsed("test") == 0
    assert trainer.global_step == 4


def test_max_time_of_the_trainer(fit, scripted, info) -> None:
    trainer = fit(scripted(), max_time="00:00:00:00", max_epochs=-1)
    assert trainer.global_step == 0
    assert [type(callback) for callback in trainer.callbacks] == [Timer]
    assert [line for line in info() if "ime" in line] == [
        "Time limit reached. Elapsed time is 0:00:00. Signaling Trainer to stop."
    ]


@pytest.mark.parametrize(
    ("timer", "hooks"),
    [
        (Timer(), set()),
        (Timer(timedelta(1)), {"on_train_batch_end"}),
        (Timer(timedelta(1), interval="epoch"), {"on_train_epoch_end"}),
    ],
)
def test_it_listens_only_where_it_looks_at_the_time(timer: Timer, hooks: set[str]) -> None:
    checking = ("on_train_batch_end", "on_train_epoch_end")
    assert {hook for hook in checking if timer.listens(hook, None)} == hooks  # type: ignore[arg-type]
