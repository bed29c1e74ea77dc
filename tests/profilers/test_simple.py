from __future__ import annotations

import time

import pytest

from fulmen.profilers import SimpleProfiler


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_durations_are_recorded():
    profiler = SimpleProfiler()
    for _ in range(2):
        with profiler.profile("sleep"):
            time.sleep(0.01)
    assert len(profiler.recorded_durations["sleep"]) == 2
    assert all(0.01 <= seconds < 1 for seconds in profiler.recorded_durations["sleep"])
    assert profiler.current_actions == {}


def test_what_does_not_run_cannot_stop_and_what_runs_cannot_start():
    profiler = SimpleProfiler()
    with pytest.raises(ValueError, match="'a' was stopped, but it does not run"):
        profiler.stop("a")
    profiler.start("a")
    with pytest.raises(ValueError, match="'a' was started, but it runs already"):
        profiler.start("a")
    profiler.stop("a")


def test_the_table_is_sorted_by_share_and_adds_up():
    profiler = SimpleProfiler()
    profiler.start_time = time.monotonic() - 10
    profiler.recorded_durations = {"short": [0.25, 0.75], "long": [4.0]}
    assert profiler.summary().splitlines()[0] == "Profiler Report"
    header, total, *rows = cells(profiler.summary())
    assert header == ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
    assert total[:3] == ["Total", "-", "3"]
    assert float(total[3]) == pytest.approx(10, abs=0.5)
    assert [row[:4] for row in rows] == [["long", "4.0", "1", "4.0"], ["short", "0.5", "2", "1.0"]]
    assert [float(row[4]) for row in rows] == pytest.approx([40, 10], abs=2)


def test_the_short_table():
    profiler = SimpleProfiler(extended=False)
    profiler.recorded_durations = {"a": [1.0, 2.0]}
    assert cells(profiler.summary()) == [["Action", "Mean duration (s)", "Total time (s)"], ["a", "1.5", "3.0"]]
    assert len({len(line) for line in profiler.summary().splitlines()[2:]}) == 1


def test_a_run_in_numbers(trainer_with, net, batches, tmp_path):
    profiler = SimpleProfiler(tmp_path, "simple")
    trainer_with(profiler, max_epochs=2).fit(net(), batches(3), batches(2))
    text = (tmp_path / "fit-simple.txt").read_text()
    assert text.startswith("FIT Profiler Report\n")
    calls = {row[0]: row[2] for row in cells(text)}
    assert calls["run_training_epoch"] == "2"
    assert calls["run_training_batch"] == "6"
    assert calls["[_TrainingEpochLoop].train_dataloader_next"] == "6"
    assert calls["[_EvaluationLoop].val_next"] == "4"
    assert calls["[Strategy]SingleDeviceStrategy.validation_step"] == "4"
