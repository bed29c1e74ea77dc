from __future__ import annotations

import pytest
import torch
from torch import nn

import fulmen
from fulmen.checkpoint import format as layout
from fulmen.checkpoint.format import explain_mismatch, versions
from fulmen.errors import CheckpointError


def test_versions_say_the_layout_and_who_wrote_it():
    assert versions() == {"pytorch-lightning_version": "2.6.6", "fulmen": {"version": fulmen.__version__}}


class Net(nn.Module):
    def __init__(self, width=2, bias=True):
        super().__init__()
        self.layer = nn.Linear(2, width, bias=bias)


def mismatch(module, state_dict) -> str:
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state_dict)
    explained = explain_mismatch(module, state_dict, caught.value)
    assert isinstance(explained, CheckpointError)
    return str(explained)


def test_missing_unexpected_and_differing_keys_are_listed_with_shapes():
    state_dict = {"layer.weight": torch.zeros(5, 2), "head.weight": torch.zeros(7)}
    message = mismatch(Net(), state_dict)
    assert message.splitlines()[0] == "The checkpoint does not fit Net:"
    assert "missing in the checkpoint:\n    layer.bias (2,)\n" in message
    assert "unknown to the module:\n    head.weight (7,)\n" in message
    assert "of another shape:\n    layer.weight ((5, 2) in the checkpoint, (2, 2) in the module)\n" in message
    assert "self.save_hyperparameters()" in message


def test_only_the_first_few_are_listed():
    message = mismatch(Net(), {**Net().state_dict(), **{f"k{i}": torch.zeros(1) for i in range(9)}})
    assert "k4 (1,)" in message
    assert "k5" not in message
    assert "... and 4 more" in message
    assert "strict_loading = False" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_of_a_wrapper_is_recognised(prefix):
    message = mismatch(Net(), {f"{prefix}{key}": value for key, value in Net().state_dict().items()})
    assert f"begins with {prefix!r}" in message
    assert f"key.removeprefix({prefix!r})" in message


def test_another_reason_is_passed_on():
    state_dict = Net().state_dict()
    assert "my own reason" in str(explain_mismatch(Net(), state_dict, RuntimeError("my own reason")))


def test_the_namespace_is_what_is_exported():
    assert all(hasattr(layout, name) for name in layout.__all__)
