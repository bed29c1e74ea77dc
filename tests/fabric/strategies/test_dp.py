"""One process for several GPUs; without a GPU torch's wrapper calls the module itself."""

import pytest
import torch
from torch import nn

from fulmen import Fabric
from fulmen.fabric.strategies import DataParallelStrategy, DDPStrategy

CPUS = [torch.device("cpu")] * 2


def test_it_is_one_process_of_many_devices():
    strategy = DataParallelStrategy(parallel_devices=CPUS)
    run = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    assert (run.world_size, run.global_rank, run.local_rank, run.node_rank) == (1, 0, 0, 0)
    assert run.is_global_zero
    assert run.device == CPUS[0]
    assert strategy.launcher is strategy.distributed_sampler_kwargs is None
    run.launch()
    run.barrier()
    assert (run.broadcast(3), run.all_gather(torch.ones(2)).shape) == (3, (2,))


def test_a_loop():
    run = Fabric(accelerator="cpu", devices=2, strategy=DataParallelStrategy())
    module = nn.Linear(2, 1)
    model, optimizer = run.setup(module, torch.optim.SGD(module.parameters(), lr=1.0))
    assert isinstance(model._forward_module, nn.DataParallel)
    before = module.bias.item()
    run.backward(model(torch.ones(4, 2)).mean())
    optimizer.step()
    assert module.bias.item() == pytest.approx(before - 1.0)
    assert model.state_dict().keys() == {"weight", "bias"}


def test_the_values_of_all_copies_become_their_mean():
    strategy = DataParallelStrategy(parallel_devices=CPUS)
    result = strategy.all_reduce({"loss": torch.tensor([1.0, 2.0]), "count": torch.tensor([1, 5]), "name": "x"})
    assert result == {"loss": torch.tensor(1.5), "count": torch.tensor(3), "name": "x"}


def test_on_the_cpu_the_name_means_ddp():
    with pytest.warns(UserWarning, match="on the CPU 'ddp' is used"):
        run = Fabric(accelerator="cpu", devices=2, strategy="DP")
    assert type(run.strategy) is DDPStrategy
    assert run.world_size == 2


@pytest.mark.gpu
def test_on_gpus():
    run = Fabric(accelerator="cuda", strategy="dp")
    assert type(run.strategy) is DataParallelStrategy
    model = run.setup(nn.Linear(2, 1))
    x = run.to_device(torch.ones(8, 2))
    assert model(x).device == run.device == x.device
