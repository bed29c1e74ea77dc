import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.utilities.grads import grad_norm


def with_gradients(*values):
    module = torch.nn.ParameterDict({f"p{i}": torch.zeros(len(value)) for i, value in enumerate(values)})
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.grad = torch.tensor(value)
    return module


def test_of_each_and_of_all():
    norms = grad_norm(with_gradients([3.0, 4.0], [12.0]), 2)
    assert norms == {"grad_2.0_norm/p0": 5.0, "grad_2.0_norm/p1": 12.0, "grad_2.0_norm_total": 13.0}


def test_the_largest():
    norms = grad_norm(with_gradients([3.0, -4.0], [1.0]), "inf", ".")
    assert norms == {"grad_inf_norm.p0": 4.0, "grad_inf_norm.p1": 1.0, "grad_inf_norm_total": 4.0}


def test_without_gradients():
    assert grad_norm(torch.nn.Linear(1, 1), 1) == {}
    module = torch.nn.Linear(1, 1)
    module.bias.grad = torch.ones(1)
    assert list(grad_norm(module, 1)) == ["grad_1.0_norm/bias", "grad_1.0_norm_total"]


@pytest.mark.parametrize("order", [0, -1, "-inf"])
def test_orders_that_are_none(order):
    with pytest.raises(ValueError, match="expected a number above 0, or 'inf'"):
        grad_norm(torch.nn.Linear(1, 1), order)


VALUES = st.lists(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=3), min_size=1, max_size=4)


@given(values=VALUES, order=st.sampled_from([1, 1.5, 2, 3]))
def test_the_total_is_the_norm_of_all_numbers_together(values, order):
    total = grad_norm(with_gradients(*values), order)[f"grad_{float(order)}_norm_total"].item()
    together = torch.tensor([x for value in values for x in value]).norm(order).item()
    assert math.isclose(total, together, rel_tol=1e-4, abs_tol=1e-5)
