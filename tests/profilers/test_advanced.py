from __future__ import annotations

import pstats

import pytest

from fulmen.profilers import AdvancedProfiler

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")


def outer_work():
    return sum(range(100))


def inner_work():
    return sorted(range(100))


def functions(profiler, action_name):
    profiler.profiled_actions[action_name].create_stats()
    return {name for _, _, name in pstats.Stats(profiler.profiled_actions[action_name]).stats}


def test_calls_count_in_the_innermost_action():
    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        outer_work()
        with profiler.profile("inner"):
            inner_work()
        outer_work()
    assert "outer_work" in functions(profiler, "outer")
    assert "inner_work" not in functions(profiler, "outer")
    assert "inner_work" in functions(profiler, "inner")
    assert "outer_work" not in functions(profiler, "inner")


def test_actions_may_overlap():
    profiler = AdvancedProfiler()
    profiler.start("first")
    profiler.start("second")
    profiler.stop("first")
    inner_work()
    profiler.stop("second")
    outer_work()
    assert "inner_work" in functions(profiler, "second")
    assert "outer_work" not in functions(profiler, "second") | functions(profiler, "first")


def test_what_does_not_run_cannot_stop_and_what_runs_cannot_start():
    profiler = AdvancedProfiler()
    with pytest.raises(ValueError, match="'a' was stopped, but it does not run"):
        profiler.stop("a")
    profiler.start("a")
    with pytest.raises(ValueError, match="'a' was started, but it runs already"):
        profiler.start("a")
    profiler.stop("a")
    with pytest.raises(ValueError, match="'a' was stopped"):
        profiler.stop("a")


def test_the_report_has_as_many_rows_as_wanted():
    profiler = AdvancedProfiler(line_count_restriction=2)
    assert profiler.summary() == ""
    with profiler.profile("work"):
        for _ in range(3):
            outer_work()
            inner_work()
    text = profiler.summary()
    assert text.startswith("Profiler Report\nProfile stats for: work\n")
    assert "Ordered by: cumulative time" in text
    assert "due to restriction <2>" in text


def test_a_run_leaves_a_report_and_the_records_of_each_action(trainer_with, net, batches, tmp_path):
    profiler = AdvancedProfiler(tmp_path, "advanced", dump_stats=True)
    trainer_with(profiler).fit(net(), batches(2))
    text = (tmp_path / "fit-advanced.txt").read_text()
    assert text.startswith("FIT Profiler Report\n")
    assert "Profile stats for: [Strategy]SingleDeviceStrategy.training_step" in text
    file = tmp_path / "fit-advanced-[Strategy]SingleDeviceStrategy.training_step.prof"
    calls = {name: row[0] for (_, _, name), row in pstats.Stats(str(file)).stats.items()}
    assert calls["training_step"] == 2
    assert profiler.profiled_actions == {}


def test_nothing_goes_on_recording_after_a_failure():
    profiler = AdvancedProfiler()
    profiler.start("outer")
    profiler.start("inner")
    profiler.teardown("fit")
    with AdvancedProfiler().profile("another"):  # refused by Python 3.12 while one is active
        outer_work()
    profiler.start("outer")
    profiler.stop("outer")
