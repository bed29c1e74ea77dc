"""Precisions of one type throughout."""

import pytest
import torch
from torch import nn

from fulmen.fabric.precision import DoublePrecision, HalfPrecision


@pytest.mark.parametrize(
    ("precision", "name", "dtype"),
    [
        (DoublePrecision(), "64-true", torch.float64),
        (HalfPrecision("16-true"), "16-true", torch.float16),
        (HalfPrecision("bf16-true"), "bf16-true", torch.bfloat16),
    ],
)
def test_true_precisions_convert_floats_and_nothing_else(precision, name, dtype):
    assert precision.precision == name
    model = precision.convert_module(nn.BatchNorm1d(3))
    assert model.weight.dtype is model.running_mean.dtype is dtype
    assert model.num_batches_tracked.dtype is torch.int64

    converted = precision.convert_input({"x": [torch.ones(1)], "y": torch.ones(1, dtype=torch.int32), "z": "text"})
    assert converted["x"][0].dtype is dtype
    assert converted["y"].dtype is torch.int32
    assert converted["z"] == "text"
    assert precision.convert_output(converted["x"][0]).dtype is torch.float32

    for context in (precision.module_init_context, precision.tensor_init_context, precision.forward_context):
        with context():
            assert torch.ones(1).dtype is dtype
    assert precision.wrap_forward(lambda: torch.zeros(1))().dtype is dtype
    assert torch.ones(1).dtype is torch.float32


def test_the_default_type_comes_back_after_an_exception():
    with pytest.raises(KeyError), DoublePrecision().forward_context():
        raise KeyError
    assert torch.get_default_dtype() is torch.float32
