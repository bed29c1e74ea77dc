"""The precision of torch_xla, against a stand-in of the package."""

import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from fulmen.fabric.precision import XLABf16Precision, XLAPrecision


@pytest.fixture
def steps(monkeypatch):
    """The steps that torch_xla was asked for."""
    found = []
    package, core, model = ModuleType("torch_xla"), ModuleType("torch_xla.core"), ModuleType("torch_xla.core.xla_model")

    def optimizer_step(optimizer, optimizer_args):
        found.append(optimizer_args)
        return optimizer.step()

    model.optimizer_step = optimizer_step
    for module in (package, core, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        XLAPrecision()


@pytest.mark.parametrize(("precision", "variable"), [("16-true", "XLA_USE_F16"), ("bf16-true", "XLA_USE_BF16")])
def test_the_type_is_set_by_a_variable_until_the_end(steps, precision, variable):
    plugin = XLAPrecision(precision)
    assert (plugin.precision, os.environ.get(variable)) == (precision, "1")
    plugin.teardown()
    assert variable not in os.environ


def test_names(steps):
    assert XLAPrecision().precision == "32-true"
    plugin = XLABf16Precision()
    assert plugin.precision == "bf16-true"
    plugin.teardown()
    with pytest.raises(ValueError, match="Type one of: 32-true, 16-true, bf16-true"):
        XLAPrecision("16-mixed")


def test_steps_go_through_torch_xla(steps):
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    plugin, module = XLAPrecision(), nn.Module()
    assert plugin.optimizer_step(optimizer, module, lambda: 4) == 4
    assert (parameter.item(), steps) == (0.5, [{}])
    module.automatic_optimization = True
    assert plugin.optimizer_step(optimizer, module, lambda: None) is None
    assert len(steps) == 1
    plugin.optimizer_step(optimizer)
    assert parameter.item() == 0.0
