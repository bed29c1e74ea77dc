from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerAction, ProfilerActivity, schedule

from fulmen.errors import MisconfigurationException
from fulmen.profilers import PyTorchProfiler
from fulmen.profilers.pytorch import RegisterRecordFunction, ScheduleWrapper

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")

TRAINING, VALIDATION = (f"[Strategy]SingleDeviceStrategy.{step}" for step in ("training_step", "validation_step"))


def traces(folder, action):
    return sorted(file for file in folder.glob("*.pt.trace.json") if f"-{action}." in file.name)


def annotations(file):
    """The names in a trace, and how often each is there. The trace is checked on the way."""
    trace = json.loads(file.read_text())
    assert trace["schemaVersion"] == 1
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert complete
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in complete)
    return Counter(event["name"] for event in complete if event.get("cat") == "user_annotation")


def always(step):
    return ProfilerAction.RECORD


# ---------------------------------------------------------------------------------------------------- traces


def test_three_steps_of_each_kind_are_recorded(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(tmp_path, "torch")
    trainer_with(profiler, max_epochs=2, num_sanity_val_steps=2).fit(net(), batches(7), batches(6))
    (training,) = traces(tmp_path, TRAINING)
    names = annotations(training)
    assert training.name.startswith("fit-torch-[Strategy]")
    for name in (TRAINING, "run_training_batch", "[_TrainingEpochLoop].train_dataloader_next"):
        assert names[name] == 3, name
    for name in ("backward", "optimizer_step", "batch_to_device"):
        assert names[f"[Strategy]SingleDeviceStrategy.{name}"] == 3, name
    assert names["[module]torch.nn.modules.linear.Linear: layer"] == 3
    assert [name for name in names if name.startswith("ProfilerStep")] == [f"ProfilerStep#{n}" for n in (2, 3, 4)]
    (validation,) = traces(tmp_path, VALIDATION)
    names = annotations(validation)
    assert names[VALIDATION] == names["[_EvaluationLoop].val_next"] == 3
    assert names[TRAINING] == 0


@pytest.mark.parametrize(
    ("name", "step"), [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")]
)
def test_other_runs_have_traces_too(trainer_with, net, batches, tmp_path, name, step):
    profiler = PyTorchProfiler(tmp_path, "torch")
    getattr(trainer_with(profiler), name)(net(), batches(6))
    (file,) = tmp_path.glob(f"{name}-torch-*{step}.*.pt.trace.json")
    assert annotations(file)[f"[Strategy]SingleDeviceStrategy.{step}"] == 3
    assert f"Profile stats for: [Strategy]SingleDeviceStrategy.{step}" in (tmp_path / f"{name}-torch.txt").read_text()


def test_a_short_run_is_recorded_as_a_whole(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(tmp_path)
    with pytest.warns(UserWarning, match="`training_step` is called 2 times in a row only"):
        trainer_with(profiler).fit(net(), batches(2))
    (file,) = traces(tmp_path, TRAINING)
    assert annotations(file)[TRAINING] == 2


def test_validation_ends_what_training_was_recording(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(tmp_path, schedule=always)
    trainer_with(profiler, max_epochs=2).fit(net(), batches(2), batches(3))
    counts = [(annotations(file)[TRAINING], annotations(file)[VALIDATION]) for file in traces(tmp_path, TRAINING)]
    assert counts == [(2, 0), (2, 0)]
    counts = [(annotations(file)[TRAINING], annotations(file)[VALIDATION]) for file in traces(tmp_path, VALIDATION)]
    assert counts == [(0, 3), (0, 3)]


def test_a_schedule_of_the_users(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(tmp_path, schedule=schedule(wait=1, warmup=1, active=1, repeat=2))
    trainer_with(profiler).fit(net(), batches(6))
    assert [annotations(file)[TRAINING] for file in traces(tmp_path, TRAINING)] == [1, 1]


def test_a_handler_of_the_users_instead_of_the_files(trainer_with, net, batches, tmp_path):
    seen = []
    profiler = PyTorchProfiler(tmp_path, on_trace_ready=seen.append)
    trainer_with(profiler).fit(net(), batches(6))
    assert len(seen) == 1
    assert traces(tmp_path, TRAINING) == []


def test_a_handler_that_fails_ends_the_run_and_not_the_process(trainer_with, net, batches, tmp_path):
    def fail(profile):
        raise ZeroDivisionError

    cycles = schedule(wait=0, warmup=1, active=1)
    profiler = PyTorchProfiler(tmp_path, on_trace_ready=fail, schedule=cycles)
    with pytest.raises(ZeroDivisionError):
        trainer_with(profiler).fit(net(), batches(6))
    profiler = PyTorchProfiler(tmp_path, schedule=cycles)
    trainer_with(profiler).fit(net(), batches(6))
    assert len(traces(tmp_path, TRAINING)) == 3


def test_no_files_unless_wanted(trainer_with, net, batches, tmp_path, info):
    profiler = PyTorchProfiler(export_to_chrome=False, record_module_names=False)
    trainer_with(profiler).fit(net(), batches(6))
    assert traces(tmp_path, TRAINING) == []
    assert TRAINING in {event.key for event in profiler.function_events}
    assert not any("[module]" in event.key for event in profiler.function_events)
    assert any("FIT Profiler Report" in line for line in info())


def test_a_run_that_fails_leaves_its_trace(trainer_with, net, batches, tmp_path):
    class Failing(net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    module = Failing()
    with pytest.raises(ZeroDivisionError):
        trainer_with(PyTorchProfiler(tmp_path)).fit(module, batches(6))
    (file,) = traces(tmp_path, TRAINING)
    assert annotations(file)[TRAINING] == 3
    assert not module.layer._forward_hooks
    assert not module.layer._forward_pre_hooks


# ---------------------------------------------------------------------------------------------------- tables


def test_the_table_has_the_memory_and_the_rows_that_are_wanted(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(
        tmp_path,
        "torch",
        profile_memory=True,
        row_limit=3,
        sort_by_key="count",
        table_kwargs={"header": "operators", "max_name_column_width": 100},
    )
    trainer_with(profiler).fit(net(), batches(6))
    text = (tmp_path / "fit-torch.txt").read_text()
    assert text.startswith(f"FIT Profiler Report\nProfile stats for: {TRAINING}\n")
    assert "CPU Mem" in text
    assert "operators" in text
    counts = [int(line.split()[-1]) for line in text.splitlines() if line.rstrip()[-1:].isdigit()]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)
    (file,) = traces(tmp_path, TRAINING)
    assert any(event["name"] == "[memory]" for event in json.loads(file.read_text())["traceEvents"])


def test_calls_are_told_apart_by_the_shapes_of_their_inputs(trainer_with, net, batches, tmp_path):
    profiler = PyTorchProfiler(tmp_path, "torch", group_by_input_shapes=True)
    trainer_with(profiler).fit(net(), batches(6))
    assert "Input Shapes" in (tmp_path / "fit-torch.txt").read_text()


def test_a_run_without_steps_has_nothing_to_tell(trainer_with, net, batches, tmp_path, info):
    trainer_with(PyTorchProfiler(tmp_path, "torch"), max_epochs=0).fit(net(), batches(6))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sort_by_key": "speed"}, MisconfigurationException, "expected one of"),
        ({"schedule": 3}, MisconfigurationException, "expected a function"),
        ({"schedule": lambda step: "record"}, MisconfigurationException, "returned 'record' for step 0"),
        ({"table_kwargs": {"colour": "red"}}, KeyError, "'colour'; expected some of"),
        ({"table_kwargs": {"row_limit": 3}}, KeyError, "give it as `row_limit"),
        ({"table_kwargs": {"sort_by": "count"}}, KeyError, "give it as `sort_by_key"),
        ({"profile_meory": True}, TypeError, "profile_meory"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        PyTorchProfiler(**arguments)


@pytest.mark.parametrize("key", sorted(PyTorchProfiler.AVAILABLE_SORT_KEYS))
def test_every_sort_key_sorts(key):
    profiler = PyTorchProfiler(
        sort_by_key=key, export_to_chrome=False, schedule=always, activities=[ProfilerActivity.CPU]
    )
    with profiler.profile("training_step"):
        torch.ones(2) + 1
    profiler.describe()
    assert profiler.function_events is not None


def test_without_a_trainer(tmp_path):
    profiler = PyTorchProfiler(tmp_path, "torch")
    for _ in range(6):
        with profiler.profile("validation_step"), profiler.profile("inside"):
            torch.ones(2) + 1
    (file,) = tmp_path.glob("torch-validation_step.*.pt.trace.json")
    assert annotations(file)["inside"] == 3
    profiler.teardown(None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nvtx_needs_a_gpu(trainer_with, net, batches):
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVTX"):
        trainer_with(PyTorchProfiler(emit_nvtx=True)).fit(net(), batches(6))


def test_calls_that_fail_end_their_name():
    class Failing(torch.nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    model = torch.nn.Sequential(Failing())
    with RegisterRecordFunction(model), torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        with pytest.raises(ZeroDivisionError):
            model(torch.ones(1))
        with torch.profiler.record_function("after"):
            pass
    events = {event.name: event for event in profile.events()}
    title = next(name for name in events if name.startswith("[module]"))
    assert title.endswith("Failing: 0")
    assert events[title].time_range.end <= events["after"].time_range.start


# ---------------------------------------------------------------------------------------------------- one schedule


NONE, WARMUP, SAVE = ProfilerAction.NONE, ProfilerAction.WARMUP, ProfilerAction.RECORD_AND_SAVE


def test_a_schedule_counts_each_kind_of_step():
    wrapper = ScheduleWrapper(schedule(wait=1, warmup=1, active=1, repeat=0))
    assert (wrapper(0), wrapper.num_step, wrapper.has_finished) == (NONE, 0, False)
    wrapper.setup("[LightningModule]Net.training_step")
    assert (wrapper.num_step, wrapper.is_training) == (0, True)
    for number, action in ((1, WARMUP), (2, SAVE), (2, NONE), (2, NONE)):
        wrapper.pre_step("[LightningModule]Net.training_step")
        assert (wrapper(99), wrapper.num_step) == (action, number)
        assert wrapper.has_finished is (number == 2)
    wrapper.pre_step("validation_step")
    assert (wrapper.num_step, wrapper.has_finished, wrapper(99)) == (0, False, WARMUP)
    wrapper.pre_step("training_step")
    assert (wrapper.num_step, wrapper.has_finished) == (2, True)
    wrapper.reset()
    assert (wrapper.num_step, wrapper.has_finished, wrapper.is_training) == (0, False, False)


@pytest.mark.parametrize("kind", ["training", "validating", "testing", "predicting"])
def test_a_schedule_knows_the_kind_of_step(kind):
    name = {"training": "training", "validating": "validation", "testing": "test", "predicting": "predict"}[kind]
    wrapper = ScheduleWrapper(always)
    wrapper.pre_step(f"[Strategy]SingleDeviceStrategy.{name}_step")
    flags = [wrapper.is_training, wrapper.is_validating, wrapper.is_testing, wrapper.is_predicting]
    assert flags == [kind == other for other in ("training", "validating", "testing", "predicting")]


def test_one_profile_over_steps_of_two_kinds():
    wrapper, saved = ScheduleWrapper(schedule(wait=0, warmup=1, active=1)), []
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU], schedule=wrapper, on_trace_ready=lambda profile: saved.append(kind)
    ) as profile:
        for kind in ("training_step",) * 3 + ("validation_step",) * 3:
            wrapper.pre_step(kind)
            profile.step()
    assert saved == ["training_step", "validation_step"]
