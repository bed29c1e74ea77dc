import pickle

import pytest

from fulmen import errors
from fulmen.errors import (
    CheckpointError,
    LightningDeprecationWarning,
    LossError,
    MisconfigurationException,
    PossibleUserWarning,
    SIGTERMException,
    TrainingSpikeException,
)


def test_the_tree_is_the_one_users_catch():
    assert MisconfigurationException.__bases__ == (Exception,)
    assert issubclass(LossError, MisconfigurationException)
    assert issubclass(LossError, RuntimeError)
    assert CheckpointError.__bases__ == (RuntimeError,)
    assert issubclass(PossibleUserWarning, UserWarning)
    assert issubclass(LightningDeprecationWarning, DeprecationWarning)


def test_every_class_is_drawn_in_the_docstring():
    assert errors.__doc__ is not None
    assert [name for name in errors.__all__ if name not in errors.__doc__] == []


def test_exceptions_carry_their_object():
    assert MisconfigurationException("no", subject=3).subject == 3
    assert LossError("no", subject="loss").subject == "loss"
    assert CheckpointError("no", path="a.ckpt").path == "a.ckpt"
    assert TrainingSpikeException(7).batch_idx == 7


def test_a_spike_names_its_batch_unless_told_otherwise():
    assert "batch 7" in str(TrainingSpikeException(7))
    assert str(TrainingSpikeException(7, "jumped")) == "jumped"


@pytest.mark.parametrize(
    "error",
    [
        MisconfigurationException("no", subject=[1]),
        LossError("no", subject="loss"),
        CheckpointError("no", path="a.ckpt"),
        TrainingSpikeException(7),
        SIGTERMException(),
    ],
)
def test_exceptions_survive_the_way_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_sigterm_ends_the_process_as_a_shell_reports_it():
    with pytest.raises(SystemExit) as raised:
        raise SIGTERMException()
    assert raised.value.code == 143
    assert SIGTERMException("told to stop").code == 143
