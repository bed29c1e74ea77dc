import pytest
import torch

from fulmen.fabric.utilities.apply_func import convert_tensors_to_scalars, convert_to_tensors, move_data_to_device


def test_to_tensors():
    numpy = pytest.importorskip("numpy")
    given = torch.ones(2)
    found = convert_to_tensors({"a": 1, "b": [True, 2.0, "x"], "c": (given, numpy.zeros(3))}, "cpu")
    assert found["a"].dtype == torch.int32
    assert found["b"][0].dtype == torch.uint8
    assert found["b"][1].dtype == torch.float32
    assert found["b"][2] == "x"
    assert found["c"][0] is given
    assert found["c"][1].dtype == torch.float64


def test_to_scalars():
    found = convert_tensors_to_scalars({"a": torch.tensor(1), "b": [torch.tensor([2.5]), "x"], "c": torch.tensor(True)})
    assert found == {"a": 1, "b": [2.5, "x"], "c": True}
    assert type(found["a"]) is int


def test_only_one_element_is_a_scalar():
    with pytest.raises(ValueError, match=r"A tensor of shape \(2,\) is no scalar"):
        convert_tensors_to_scalars([torch.ones(2)])


def test_to_a_device():
    moved = move_data_to_device({"a": [torch.ones(2)], "b": 1}, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["b"] == 1
