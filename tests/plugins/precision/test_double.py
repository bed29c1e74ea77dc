"""A module that computes in 64 bit whoever calls it."""

import pytest
import torch
from torch import nn

from fulmen.plugins.precision.double import LightningDoublePrecisionModule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, scale=1):
        assert torch.ones(1).dtype is torch.float64
        return self.layer(x) * scale

    def training_step(self, batch, batch_idx):
        return self(batch["x"], scale=batch_idx)

    validation_step = test_step = predict_step = training_step


def test_forward_takes_and_computes_in_64_bit():
    wrapped = LightningDoublePrecisionModule(Net().double())
    assert wrapped(torch.ones(1, 2), scale=torch.tensor(2.0)).dtype is torch.float64
    assert torch.ones(1).dtype is torch.float32
    assert list(wrapped.state_dict()) == ["module.layer.weight", "module.layer.bias"]


@pytest.mark.parametrize("name", ["training_step", "validation_step", "test_step", "predict_step"])
def test_steps(name):
    wrapped = LightningDoublePrecisionModule(Net().double())
    assert getattr(wrapped, name)({"x": torch.ones(1, 2)}, 0).item() == 0.0
