from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen import Fabric
from fulmen.errors import TrainingSpikeException
from fulmen.fabric.utilities import SpikeDetection


@pytest.fixture
def fabric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Fabric(accelerator="cpu")


def first_spike(fabric, losses, **arguments):
    """Index of the first loss that is a spike, None if there is none."""
    detection = SpikeDetection(**arguments)
    for index, loss in enumerate(losses):
        try:
            detection.on_train_batch_end(fabric, torch.tensor(float(loss)), None, index)
        except TrainingSpikeException as spike:
            return spike.batch_idx
    return None


@pytest.mark.parametrize(
    ("losses", "arguments", "spike"),
    [
        ([1, 1, 1, 10], {}, 3),
        ([1, 1, 3], {}, 2),
        ([1, 1, 2.99], {}, None),
        ([1, 10], {"warmup": 0}, 1),
        ([1, 10, 10], {"warmup": 2}, None),
        ([1, 1, 1, 10], {"warmup": 3}, 3),
        ([1, 1, 10], {"atol": 20}, None),
        ([1, 1, 10], {"atol": 9}, 2),
        ([1, 1, 10], {"rtol": None, "atol": 1}, 2),
        ([10, 10, 1, 9], {}, None),
        ([10, 10, 1], {"mode": "max"}, None),
        ([10, 10, 1], {"mode": "max", "rtol": 0.5}, 2),
        ([100, *[1] * 10, 4], {}, 11),
        ([100, *[1] * 10, 4], {"window": 11}, None),
        ([math.nan], {}, None),
        ([math.nan], {"warmup": 0}, 0),
        ([1, math.nan], {}, 1),
        ([1, math.inf], {"warmup": 3}, None),
        ([1, 1, math.inf], {"finite_only": False}, 2),
        ([1, math.nan, 1.1], {"finite_only": False}, None),
    ],
)
def test_what_is_a_spike(fabric, losses, arguments, spike):
    assert first_spike(fabric, losses, **arguments) == spike


@given(st.lists(st.floats(1, 2.9), min_size=1, max_size=30))
def test_losses_within_the_tolerance_are_none(losses):
    detection = SpikeDetection(warmup=0)
    fabric = Fabric(accelerator="cpu")
    for index, loss in enumerate(losses):
        detection.on_train_batch_end(fabric, torch.tensor(loss), None, index)


def test_the_batches_are_added_to_those_in_the_file(fabric, tmp_path):
    first_spike(fabric, [1, 1, 10], exclude_batches_path="sub/skip.json")
    first_spike(fabric, [1, 1, 1, 10], exclude_batches_path="sub/skip.json")
    assert json.loads((tmp_path / "sub" / "skip.json").read_text()) == [1, 2, 3]


def test_the_file_is_in_the_working_directory_by_default(fabric, tmp_path):
    first_spike(fabric, [math.nan], warmup=0)
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [0]


def test_its_state_can_be_loaded(fabric):
    detection, other = SpikeDetection(), SpikeDetection()
    for index, loss in enumerate([1.0, 2.0]):
        detection.on_train_batch_end(fabric, torch.tensor(loss), None, index)
    with pytest.raises(TrainingSpikeException):
        detection.on_train_batch_end(fabric, torch.tensor(100.0), None, 2)
    other.load_state_dict(json.loads(json.dumps(detection.state_dict())))
    assert (other.last_val, other.running_mean, other.bad_batches) == (2.0, 1.5, [1, 2])
    assert other.is_spike(4.5)
    assert not other.is_spike(4.4)


def test_a_state_of_lightning_can_be_loaded():
    detection = SpikeDetection()
    state = {"last_val": torch.tensor(1.0), "mode": "min", "warmup": 1, "atol": None, "rtol": 2.0}
    detection.load_state_dict({**state, "bad_batches": [2, 3], "bad_batches_path": "x.json", "running": {}, "mean": {}})
    assert (detection.last_val, detection.bad_batches) == (1.0, [2, 3])
    assert detection.is_spike(3.0)


@pytest.mark.parametrize("arguments", [{"mode": "low"}, {"window": 0}, {"warmup": -1}])
def test_arguments_that_cannot_work(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*expected"):
        SpikeDetection(**arguments)
