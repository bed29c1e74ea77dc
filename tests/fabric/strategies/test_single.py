"""One process on one device."""

import contextlib

import pytest
import torch
from torch import nn

from fulmen.fabric.accelerators import CUDAAccelerator
from fulmen.fabric.strategies import SingleDeviceStrategy


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "cpu"), (torch.device("meta"), "meta"), ("cuda:1", "cuda:1"), (2, "cuda:2")]
)
def test_its_device(device, expected):
    assert SingleDeviceStrategy(device).root_device == torch.device(expected)


def test_it_is_alone():
    strategy = SingleDeviceStrategy()
    assert strategy.strategy_name == "single_device"
    assert (strategy.world_size, strategy.global_rank, strategy.local_rank, strategy.node_rank) == (1, 0, 0, 0)
    assert strategy.is_global_zero
    assert strategy.launcher is None
    assert strategy.distributed_sampler_kwargs is None
    assert strategy.lightning_restore_optimizer
    assert not strategy.restore_checkpoint_after_setup
    assert not strategy.handles_gradient_accumulation


def test_collectives_give_back_what_they_get():
    strategy = SingleDeviceStrategy()
    tensor = torch.ones(2)
    assert strategy.reduce(tensor, reduce_op="sum") is tensor
    assert strategy.all_gather(tensor) is tensor
    assert strategy.broadcast(tensor) is tensor
    assert strategy.reduce_boolean_decision(False) is False
    strategy.barrier("x")


def test_nothing_is_wrapped():
    strategy = SingleDeviceStrategy()
    model = nn.Linear(1, 1)
    loader = [1, 2]
    assert strategy.setup_module(model) is model
    assert strategy.wrap_step(model.forward) == model.forward
    assert strategy.process_dataloader(loader) is loader
    with strategy.no_backward_sync(model, enabled=True), strategy.model_sharded_context():
        pass
    assert isinstance(strategy.no_backward_sync(model), contextlib.nullcontext)


def test_a_module_may_stay_where_it_is():
    strategy = SingleDeviceStrategy("meta")
    assert strategy.setup_module(nn.Linear(1, 1), move_to_device=False).weight.device.type == "cpu"
    assert strategy.setup_module(nn.Linear(1, 1)).weight.device.type == "meta"


@pytest.mark.gpu
def test_teardown_brings_everything_back_to_the_cpu():
    strategy = SingleDeviceStrategy("cuda:0", accelerator=CUDAAccelerator())
    strategy.setup_environment()
    strategy.connect(nn.Linear(2, 2))
    strategy.model_to_device()
    optimizer = torch.optim.Adam(strategy.model.parameters())
    strategy.optimizers = [optimizer]
    strategy.model(torch.ones(1, 2, device="cuda")).sum().backward()
    strategy.optimizer_step(optimizer)
    assert optimizer.state[strategy.model.weight]["exp_avg"].is_cuda
    strategy.teardown()
    assert strategy.model.weight.device.type == "cpu"
    assert {value.device.type for state in optimizer.state.values() for value in state.values()} == {"cpu"}
