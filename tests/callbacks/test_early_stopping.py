from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fulmen.callbacks import EarlyStopping, EarlyStoppingReason
from fulmen.callbacks.monitor import missing_metric
from fulmen.errors import MisconfigurationException

NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED
EXHAUSTED = EarlyStoppingReason.PATIENCE_EXHAUSTED


def judged(stopping: EarlyStopping, *values: float) -> list[EarlyStoppingReason]:
    return [stopping.judge(torch.tensor(value))[0] for value in values]


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(MisconfigurationException, match=r"mode='low'.*'min'.*'max'"):
        EarlyStopping("score", mode="low")


def test_patience_counts_checks_without_improvement() -> None:
    assert judged(EarlyStopping("score", patience=2), 1, 1, 1) == [NOT_STOPPED, NOT_STOPPED, EXHAUSTED]
    assert judged(EarlyStopping("score", patience=0), 1, 1) == [NOT_STOPPED, EXHAUSTED]
    assert judged(EarlyStopping("score", patience=1), 1, 1) == [NOT_STOPPED, EXHAUSTED]


def test_an_improvement_starts_the_count_anew() -> None:
    stopping = EarlyStopping("score", patience=2)
    assert judged(stopping, 3, 4, 2, 2, 2) == [*[NOT_STOPPED] * 4, EXHAUSTED]
    assert stopping.best_score == 2
    assert stopping.wait_count == 2


def test_mode_max() -> None:
    stopping = EarlyStopping("score", patience=1, mode="max")
    assert judged(stopping, 1, 2, 3, 2) == [*[NOT_STOPPED] * 3, EXHAUSTED]
    assert stopping.best_score == 3


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
def test_min_delta_has_to_be_exceeded(mode: str, sign: int) -> None:
    stopping = EarlyStopping("score", patience=1, min_delta=1.0, mode=mode)
    assert judged(stopping, 0.0, sign * 1.5, sign * 2.5) == [NOT_STOPPED, NOT_STOPPED, EXHAUSTED]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops(value: float) -> None:
    assert judged(EarlyStopping("score"), 1.0, value)[-1] is EarlyStoppingReason.NON_FINITE_METRIC


def test_nan_is_no_improvement_when_it_is_allowed() -> None:
    assert judged(EarlyStopping("score", patience=2, check_finite=False), 1.0, math.nan, math.nan)[-1] is EXHAUSTED


def test_thresholds() -> None:
    stopping = EarlyStopping("score", stopping_threshold=1.5, divergence_threshold=5.0)
    assert judged(stopping, 3.0, 1.5, 5.0) == [NOT_STOPPED] * 3
    reason, message = stopping.judge(torch.tensor(1.0))
    assert reason is EarlyStoppingReason.STOPPING_THRESHOLD
    assert message == "Stopping threshold reached: score = 1.0 < 1.5. Signaling Trainer to stop."
    reason, message = stopping.judge(torch.tensor(6.0))
    assert reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD
    assert message == "Divergence threshold reached: score = 6.0 > 5.0. Signaling Trainer to stop."


def test_messages() -> None:
    stopping = EarlyStopping("score", patience=1)
    assert stopping.judge(torch.tensor(3.0))[1] == "Metric score improved. New best score: 3.000"
    assert stopping.judge(torch.tensor(2.0))[1] == (
        "Metric score improved by 1.000 >= min_delta = 0.0. New best score: 2.000"
    )
    assert stopping.judge(torch.tensor(2.0))[1] == (
        "Monitored metric score did not improve in the last 1 records. Best score: 2.000. Signaling Trainer to stop."
    )


def test_identity() -> None:
    assert EarlyStopping("x").state_key == "EarlyStopping{'monitor': 'x', 'mode': 'min'}"
    assert EarlyStopping("x").monitor_op is torch.lt
    assert EarlyStopping("x", mode="max").monitor_op is torch.gt


def test_state_goes_round() -> None:
    stopping = EarlyStopping("score", patience=1)
    judged(stopping, 1.0)
    state = stopping.state_dict()
    assert state == {
        "wait_count": 0,
        "stopped_epoch": 0,
        "best_score": torch.tensor(1.0),
        "patience": 1,
        "stopping_reason": 0,
        "stopping_reason_message": None,
    }
    other = EarlyStopping("score", patience=7)
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_state_of_an_older_file() -> None:
    stopping = EarlyStopping("score")
    stopping.load_state_dict({"wait_count": 1, "stopped_epoch": 2, "best_score": torch.tensor(3.0), "patience": 9})
    assert (stopping.wait_count, stopping.patience, stopping.stopping_reason) == (1, 9, NOT_STOPPED)


def test_message_for_a_missing_metric_offers_close_names_first() -> None:
    message = missing_metric("EarlyStopping", "val_los", ["acc", "val_loss", "zebra"])
    assert "`EarlyStopping(monitor='val_los')`" in message
    assert "Did you mean 'val_loss'? Available now: 'val_loss', 'acc', 'zebra'." in message
    assert "self.log('val_los', value)" in message
    assert "Available now: nothing." in missing_metric("EarlyStopping", "x", [])


@pytest.mark.parametrize(("patience", "epochs"), [(2, 3), (1, 2), (0, 2)])
def test_a_constant_metric_stops_training(fit, scripted, patience: int, epochs: int) -> None:
    stopping = EarlyStopping("score", patience=patience)
    trainer = fit(scripted([1.0]), stopping, max_epochs=10)
    assert trainer.current_epoch == epochs
    assert trainer.global_step == 4 * epochs
    assert stopping.stopped_epoch == epochs - 1
    assert stopping.stopping_reason is EXHAUSTED
    assert "did not improve" in stopping.stopping_reason_message


def test_checks_after_each_validation_inside_an_epoch(fit, scripted) -> None:
    trainer = fit(scripted([1.0]), EarlyStopping("score", patience=2), val_check_interval=0.5, max_epochs=10)
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)


def test_checks_at_the_epoch_end_when_told_to(fit, scripted) -> None:
    stopping = EarlyStopping("score", patience=2, check_on_train_epoch_end=True)
    assert fit(scripted([1.0]), stopping, val_check_interval=0.5, max_epochs=10).current_epoch == 3


def test_checks_after_validations_every_other_epoch(fit, scripted) -> None:
    trainer = fit(scripted([1.0]), EarlyStopping("score", patience=1), check_val_every_n_epoch=2, max_epochs=10)
    assert trainer.current_epoch == 4


def test_validation_by_time(fit, scripted) -> None:
    stopping = EarlyStopping("score", patience=1)
    fit(scripted([1.0]), stopping, val_check_interval="00:00:10:00", max_epochs=2)
    assert stopping.wait_count == 0
    assert stopping.stopping_reason is NOT_STOPPED


def test_a_training_metric_without_validation(fit, scripted) -> None:
    stopping = EarlyStopping("count", patience=1, mode="min")
    trainer = fit(scripted(), stopping, validate=False, max_epochs=10, check_val_every_n_epoch=2)
    assert trainer.current_epoch == 2


def test_the_sanity_check_does_not_count(fit, scripted) -> None:
    stopping = EarlyStopping("score", patience=1, check_on_train_epoch_end=False)
    assert fit(scripted([1.0]), stopping, num_sanity_val_steps=1, max_epochs=10).current_epoch == 2


def test_what_the_module_logs_at_the_epoch_end_is_seen(fit, scripted) -> None:
    class Late(scripted):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.0)

    assert fit(Late(), EarlyStopping("late", patience=1), max_epochs=10).current_epoch == 2


def test_min_epochs_are_trained_nevertheless(fit, scripted) -> None:
    assert fit(scripted([1.0]), EarlyStopping("score", patience=1), min_epochs=4, max_epochs=10).current_epoch == 4


def test_nothing_happens_in_a_fast_dev_run(fit, scripted) -> None:
    stopping = EarlyStopping("nonsense")
    assert fit(scripted(), stopping, fast_dev_run=1).global_step == 1


def test_a_missing_metric_is_an_error(fit, scripted) -> None:
    with pytest.raises(RuntimeError, match=r"monitor='scor'.*Did you mean 'score'\? Available now: 'score', 'count'"):
        fit(scripted(), EarlyStopping("scor"))


def test_a_missing_metric_is_a_warning_when_not_strict(fit, scripted) -> None:
    with pytest.warns(RuntimeWarning, match="no metric of this name"):
        fit(scripted(), EarlyStopping("nonsense", strict=False, verbose=True), max_epochs=1)
    fit(scripted(), EarlyStopping("nonsense", strict=False), max_epochs=1)


@pytest.mark.parametrize(
    ("world_size", "rank", "rank_zero_only", "line"),
    [(1, 0, False, "why"), (2, 1, False, "[rank: 1] why"), (2, 0, False, "[rank: 0] why"), (2, 0, True, "why")],
)
def test_each_rank_reports_with_its_number_unless_told_otherwise(info, world_size, rank, rank_zero_only, line) -> None:
    stopping = EarlyStopping("score", log_rank_zero_only=rank_zero_only)
    stopping._report(SimpleNamespace(world_size=world_size, global_rank=rank), "why")  # type: ignore[arg-type]
    assert info() == [line]


def test_verbose_reports_improvements(fit, scripted, info) -> None:
    fit(scripted([3.0, 2.0]), EarlyStopping("score", patience=1, verbose=True))
    lines = [line for line in info() if "etric score" in line]
    assert lines == [
        "Metric score improved. New best score: 3.000",
        "Metric score improved by 1.000 >= min_delta = 0.0. New best score: 2.000",
        "Monitored metric score did not improve in the last 1 records. Best score: 2.000. Signaling Trainer to stop.",
    ]
