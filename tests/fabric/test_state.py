"""From objects to what is saved, and back."""

import pytest
import torch
from torch import nn

from fulmen.fabric.state import collect, restore, restore_object
from fulmen.fabric.strategies import SingleDeviceStrategy
from fulmen.fabric.wrappers import wrap_optimizer

STRATEGY = SingleDeviceStrategy()


class Counter:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def objects():
    model = nn.Linear(2, 1)
    optimizer = wrap_optimizer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.5), STRATEGY, [])
    return {"model": model, "optimizer": optimizer, "counter": Counter(), "epoch": 3, "note": {"a": 1}}


def test_objects_become_their_states():
    state = objects()
    saved = collect(STRATEGY, state)
    assert list(saved) == list(state)
    assert list(saved["model"]) == ["weight", "bias"]
    assert set(saved["optimizer"]) == {"state", "param_groups"}
    assert (saved["counter"], saved["epoch"], saved["note"]) == ({"value": 0}, 3, {"a": 1})


def test_filters_see_keys_and_values_of_their_entry():
    saved = collect(
        STRATEGY,
        objects(),
        {
            "model": lambda key, value: key == "bias" and isinstance(value, torch.Tensor),
            "epoch": lambda key, value: False,
        },
    )
    assert list(saved["model"]) == ["bias"]
    assert saved["epoch"] == 3


def test_filters_that_do_not_fit():
    with pytest.raises(TypeError, match="dict of functions"):
        collect(STRATEGY, objects(), filter=3)
    with pytest.raises(TypeError, match="'model' has to be a function"):
        collect(STRATEGY, objects(), filter={"model": 3})
    with pytest.raises(ValueError, match="'modle'"):
        collect(STRATEGY, objects(), filter={"modle": lambda key, value: True})


def test_restoring_is_the_inverse():
    state, fresh = objects(), objects()
    state["counter"].value = 5
    state["epoch"] = 9
    checkpoint = collect(STRATEGY, state) | {"extra": 1}
    assert restore(STRATEGY, fresh, checkpoint) == {"extra": 1}
    assert torch.equal(fresh["model"].weight, state["model"].weight)
    assert (fresh["counter"].value, fresh["epoch"]) == (5, 9)


def test_what_is_missing():
    state = {"model": nn.Linear(1, 1), "more": 1}
    checkpoint = {"model": {"bias": torch.ones(1)}}
    with pytest.raises(KeyError, match="has no 'more'"):
        restore(STRATEGY, state, checkpoint)
    assert restore(STRATEGY, state, checkpoint, strict=False) == {}
    assert state["model"].bias.item() == 1.0
    assert state["more"] == 1
    with pytest.raises(RuntimeError, match="weight"):
        restore(STRATEGY, {"model": nn.Linear(1, 1)}, checkpoint)


def test_plain_values_take_no_state():
    assert not restore_object(STRATEGY, 3, 4)
    assert restore_object(STRATEGY, Counter(), {"value": 4})
