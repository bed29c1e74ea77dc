"""The precision of a DeepSpeed engine: types here, the rest is left to the engine."""

import pytest
import torch
from torch import nn

from fulmen.errors import MisconfigurationException
from fulmen.fabric.precision import DeepSpeedPrecision

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


class Engine(nn.Module):
    """What an engine of DeepSpeed has: a backward pass and a step."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def backward(self, loss, **kwargs):
        self.calls.append(("backward", loss.item(), kwargs))

    def step(self, **kwargs):
        self.calls.append(("step", kwargs))
        return "stepped"


class Module(nn.Module):
    """What of a `LightningModule` is looked at."""

    def __init__(self, engine):
        super().__init__()
        self.automatic_optimization = True
        self.trainer = type("Trainer", (), {"model": engine})


@pytest.mark.parametrize(
    ("precision", "of_input", "of_module", "config"),
    [
        ("32-true", SINGLE, SINGLE, {}),
        ("16-true", HALF, HALF, {"fp16": {"enabled": True}}),
        ("bf16-true", BRAIN, BRAIN, {"bf16": {"enabled": True}}),
        ("16-mixed", HALF, SINGLE, {"fp16": {"enabled": True}}),
        ("bf16-mixed", BRAIN, SINGLE, {"bf16": {"enabled": True}}),
    ],
)
def test_types(precision, of_input, of_module, config):
    plugin = DeepSpeedPrecision(precision)
    assert (plugin.precision, plugin.engine_config, plugin.scaler) == (precision, config, None)
    assert plugin.convert_module(nn.Linear(1, 1)).weight.dtype is of_module
    assert plugin.convert_input(torch.ones(1, dtype=torch.float64)).dtype is of_input
    assert plugin.convert_output(torch.ones(1, dtype=HALF)).dtype is SINGLE
    for context in (plugin.module_init_context, plugin.tensor_init_context):
        with context():
            assert torch.ones(1).dtype is of_module


def test_unknown_precisions():
    with pytest.raises(ValueError, match="Type one of: 32-true, 16-true, bf16-true, 16-mixed, bf16-mixed"):
        DeepSpeedPrecision("64-true")


@pytest.mark.parametrize("wrap", [Module, lambda engine: engine], ids=["trainer", "fabric"])
def test_the_engine_computes_gradients_and_steps(wrap):
    engine, plugin = Engine(), DeepSpeedPrecision("16-mixed")
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    plugin.backward(torch.tensor(3.0), wrap(engine), optimizer, retain_graph=True)
    assert plugin.optimizer_step(optimizer, wrap(engine), lambda: 5.0) == 5.0
    assert plugin.optimizer_step(optimizer, wrap(engine), lr_kwargs=1) == "stepped"
    assert engine.calls == [("backward", 3.0, {"retain_graph": True}), ("step", {}), ("step", {"lr_kwargs": 1})]
    assert plugin.changes_backward
    with pytest.raises(RuntimeError, match="model=model"):
        plugin.backward(torch.tensor(3.0), None)


def test_clipping_is_left_to_the_engine():
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.full((1,), 9.0)
    DeepSpeedPrecision("32-true").clip_gradients(torch.optim.SGD([parameter], lr=1.0), 1.0)
    assert parameter.grad.item() == 9.0


def test_what_an_engine_cannot_do():
    plugin, engine = DeepSpeedPrecision("32-true"), Engine()
    parameters = [nn.Parameter(torch.ones(1))]
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        plugin.optimizer_step(torch.optim.LBFGS(parameters), engine, lambda: 1)
    with pytest.raises(MisconfigurationException, match=r"`loss \* 0`"):
        plugin.optimizer_step(torch.optim.SGD(parameters), Module(engine), lambda: None)
    assert engine.calls == []
