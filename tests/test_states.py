import pytest

from fulmen.states import RunningStage, TrainerFn, TrainerState, TrainerStatus


@pytest.mark.parametrize(
    ("enumeration", "values"),
    [
        (TrainerFn, ["fit", "validate", "test", "predict"]),
        (RunningStage, ["train", "sanity_check", "validate", "test", "predict"]),
        (TrainerStatus, ["initializing", "running", "finished", "interrupted"]),
    ],
)
def test_values(enumeration, values):
    assert [member.value for member in enumeration] == values


def test_stages():
    assert [stage.value for stage in RunningStage if stage.evaluating] == ["sanity_check", "validate", "test"]
    assert [stage.dataloader_prefix for stage in RunningStage] == ["train", "val", "val", "test", "predict"]


@pytest.mark.parametrize(
    ("status", "finished", "stopped"),
    [("initializing", False, False), ("running", False, False), ("finished", True, True), ("interrupted", False, True)],
)
def test_state(status, finished, stopped):
    state = TrainerState(status=TrainerStatus(status))
    assert (state.finished, state.stopped, state.status.stopped) == (finished, stopped, stopped)


def test_a_new_state_is_initializing():
    assert TrainerState() == TrainerState(status=TrainerStatus.INITIALIZING, fn=None, stage=None)
