"""The precision of sharded modules: torch's own configurations, and what is computed with them."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import MixedPrecision as MixedPrecisionConfig
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision import FSDPPrecision

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "dtype", "of_module"),
    [
        ("32-true", SINGLE, SINGLE),
        ("16-true", HALF, HALF),
        ("bf16-true", BRAIN, BRAIN),
        ("16-mixed", HALF, SINGLE),
        ("bf16-mixed", BRAIN, SINGLE),
    ],
)
def test_types(precision, dtype, of_module):
    plugin = FSDPPrecision(precision)
    assert plugin.precision == precision
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
    config = MixedPrecisionConfig(param_dtype=dtype, reduce_dtype=dtype, buffer_dtype=dtype)
    assert plugin.mixed_precision_config == config
    assert plugin.convert_module(nn.Linear(1, 1)).weight.dtype is of_module
    assert plugin.convert_input({"x": torch.ones(1, dtype=torch.float64)})["x"].dtype is of_module
    assert plugin.convert_output(torch.ones(1, dtype=dtype)).dtype is SINGLE
    for context in (plugin.module_init_context, plugin.tensor_init_context, plugin.forward_context):
        with context():
            assert torch.ones(1).dtype is of_module


@pytest.mark.skipif(torch.accelerator.is_available(), reason="autocast is that of the accelerator")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_autocast_outside_of_the_sharded_modules(precision):
    plugin = FSDPPrecision(precision)
    with plugin.train_step_context():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is plugin.mixed_precision_policy.param_dtype


def test_only_16_mixed_scales():
    own = GradScaler("cpu", init_scale=4.0)
    assert FSDPPrecision("16-mixed", own).scaler is own
    assert isinstance(FSDPPrecision("16-mixed").scaler, GradScaler)
    assert [FSDPPrecision(name).scaler for name in ("32-true", "16-true", "bf16-true", "bf16-mixed")] == [None] * 4
    with pytest.raises(PlanError, match="scales no loss") as caught:
        FSDPPrecision("bf16-mixed", own)
    assert caught.value.subject is own
    with pytest.raises(ValueError, match="Type one of: 32-true, 16-true"):
        FSDPPrecision("64-true")


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_module_computes_in_16_bit_and_is_clipped_over_its_shards(group):
    plugin = FSDPPrecision("16-mixed", GradScaler("cpu", init_scale=4.0))
    seen = []
    layer = nn.Linear(3, 1)
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    model = fully_shard(layer, mesh=dist.init_device_mesh("cpu", (1,)), mp_policy=plugin.mixed_precision_policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plugin.scale_loss(model(plugin.convert_input(torch.ones(1, 3))).sum()).backward()
    assert seen == [(HALF, HALF)]
    assert model.bias.grad.full_tensor().item() == 4.0
    plugin.unscale_gradients(optimizer)
    assert model.bias.grad.full_tensor().item() == 1.0
    plugin.clip_gradients(optimizer, 0.5)
    squares = [parameter.grad.full_tensor().square().sum() for parameter in model.parameters()]
    assert sum(squares).sqrt().item() == pytest.approx(0.5)
    before = model.bias.full_tensor().item()
    plugin.optimizer_step(optimizer)
    assert model.bias.full_tensor().item() == pytest.approx(before - 0.25, abs=1e-5)
