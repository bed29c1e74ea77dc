"""`self.log` of a module that Fabric has set up."""

from __future__ import annotations

import gc

import pytest
import torch

import fulmen


@pytest.fixture
def module(Net, recorder):
    fabric = fulmen.Fabric(accelerator="cpu", loggers=recorder)
    module = Net()
    fabric.setup(module)
    return module


def test_values_go_to_the_loggers_of_fabric(module, recorder):
    module.log("x", torch.tensor(2.5))
    module.log_dict({"a": 1.0, "b": torch.tensor([2])})
    assert recorder.rows == [({"x": 2.5}, None), ({"a": 1.0, "b": 2}, None)]


def test_logger_false_logs_nothing(module, recorder):
    module.log("x", 1.0, logger=False)
    module.log_dict({"a": 1.0}, logger=False)
    assert recorder.calls == []


def test_the_module_keeps_its_fabric(Net, recorder):
    module = Net()
    fulmen.Fabric(accelerator="cpu", loggers=recorder).setup(module)
    gc.collect()
    module.log("x", 1.0)
    assert recorder.rows == [({"x": 1.0}, None)]


@pytest.mark.parametrize("value", [{"a": 1.0}, [1.0], None, "text"])
def test_other_values_are_refused(module, value):
    with pytest.raises(ValueError, match=r"`self.log\('x', ...\)` under Fabric was given"):
        module.log("x", value)


def test_metrics_are_refused(module):
    torchmetrics = pytest.importorskip("torchmetrics")
    with pytest.raises(ValueError, match=r"MeanMetric.*metric.compute\(\)"):
        module.log("x", torchmetrics.MeanMetric())
