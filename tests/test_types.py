import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.states import RunningStage
from fulmen.types import GradClipAlgorithmType, Optimizable, Stateful, Steppable


@given(st.sampled_from(list(RunningStage)), st.data())
def test_members_equal_their_string_in_any_case(stage, data):
    spelling = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in stage.value)
    assert stage == spelling
    assert spelling == stage
    assert (stage != spelling) is False
    assert RunningStage(spelling) is stage
    assert {stage.value: 1}[stage] == 1  # a plain string finds it in a dict


def test_members_differ_from_everything_else():
    assert RunningStage.TRAINING != "test"
    assert RunningStage.TRAINING != RunningStage.TESTING
    assert RunningStage.TRAINING != 3
    assert RunningStage.TRAINING is not None
    with pytest.raises(ValueError, match="somewhere"):
        RunningStage("somewhere")


def test_members_print_as_their_string_and_survive_pickling():
    assert f"{RunningStage.TRAINING}" == "train"
    assert pickle.loads(pickle.dumps(RunningStage.TRAINING)) is RunningStage.TRAINING


def test_clipping_algorithms():
    assert GradClipAlgorithmType.supported_types() == ["value", "norm"]
    assert GradClipAlgorithmType.supported_type("norm")
    assert not GradClipAlgorithmType.supported_type("sum")


def test_protocols_know_optimizers_and_modules():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert isinstance(optimizer, Steppable)
    assert isinstance(optimizer, Optimizable)
    assert isinstance(optimizer, Stateful)
    assert isinstance(model, Stateful)
    assert not isinstance(model, Steppable)
    assert not isinstance(object(), Stateful)
