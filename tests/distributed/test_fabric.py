"""Fabric over real processes: a loop of the user's own gives what it gives in one process on the same batches."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen import Fabric, LightningModule
from fulmen.errors import PossibleUserWarning
from fulmen.fabric.strategies import ParallelStrategy
from processes import run_ranks


def fabric(**settings):
    return Fabric(**{"accelerator": "cpu", "devices": 2} | settings)


def launched(**settings):
    run = fabric(**settings)
    run.launch()
    return run


def model_and_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def data(size=32):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True))


def share(dataset, batch_size):
    """The loader of a rank, of which each batch is a part of the global batch of the same number."""
    rank, size = dist.get_rank(), dist.get_world_size()
    starts = range(rank * batch_size, len(dataset), batch_size * size)
    return DataLoader(Subset(dataset, [start + i for start in starts for i in range(batch_size)]), batch_size)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(results, expected, **tolerance):
    for result in results:
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, **tolerance)


# A loop


def raw_loop():
    model, optimizer = model_and_optimizer()
    for x, y in DataLoader(data(), 8):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return gradients(model), weights(model)


def loop(strategy):
    run = launched(strategy=strategy)
    model, optimizer = run.setup(*model_and_optimizer())
    for x, y in run.setup_dataloaders(share(data(), 4), use_distributed_sampler=False):
        optimizer.zero_grad()
        run.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
    return gradients(model.module), weights(model)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_a_loop_equals_that_of_one_process(strategy):
    expected_gradients, expected_weights = raw_loop()
    results = run_ranks(loop, 2, strategy)
    assert_close([result[0] for result in results], expected_gradients, atol=1e-6, rtol=1e-6)
    assert_close([result[1] for result in results], expected_weights, atol=1e-6, rtol=1e-6)


def loop_of_all_samplers():
    run = launched()
    model, optimizer = run.setup(*model_and_optimizer())
    for x, y in run.setup_dataloaders(DataLoader(data(), 4)):
        optimizer.zero_grad()
        run.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
    return gradients(model.module), weights(model)


def test_the_data_are_divided():
    _, expected = raw_loop()
    assert_close([result[1] for result in run_ranks(loop_of_all_samplers, 2)], expected, atol=1e-6, rtol=1e-6)


# Accumulation


def accumulate(is_compiled):
    run = launched()
    model, optimizer = model_and_optimizer()
    if is_compiled:
        model = torch.compile(model, backend="eager")
    model, optimizer = run.setup(model, optimizer)
    exchanges = []

    def count(state, bucket):
        exchanges.append(bucket.index())
        future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0].div_(dist.get_world_size()))

    wrapped = getattr(model._forward_module, "_orig_mod", model._forward_module)
    wrapped.register_comm_hook(None, count)
    seen = []
    for number, (x, y) in enumerate(run.setup_dataloaders(share(data(), 4), use_distributed_sampler=False)):
        is_open = number % 2 == 0
        with run.no_backward_sync(model, enabled=is_open):
            run.backward(nn.functional.mse_loss(model(x), y) / 2)
        seen.append(len(exchanges))
        if is_open:
            mine = torch.cat([value.flatten() for value in gradients(model.module).values()])
            assert not torch.equal(*run.all_gather(mine))
        else:
            optimizer.step()
            optimizer.zero_grad()
    return seen, weights(model)


def accumulate_alone():
    model, optimizer = model_and_optimizer()
    for number, (x, y) in enumerate(DataLoader(data(), 8)):
        (nn.functional.mse_loss(model(x), y) / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_gradients_are_exchanged_once_in_a_window(is_compiled):
    results = run_ranks(accumulate, 2, is_compiled)
    for seen, _ in results:
        assert seen == [0, 1, 1, 2]
    assert_close([result[1] for result in results], accumulate_alone(), atol=1e-6, rtol=1e-6)


class ExchangesAlways(ParallelStrategy):
    def setup_module(self, module, move_to_device=True):
        return DistributedDataParallel(module)


def accumulate_where_it_cannot_be():
    run = launched(strategy=ExchangesAlways())
    model = run.setup(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"model = fabric\.setup"):
        run.no_backward_sync(model.module)
    warning = pytest.warns(PossibleUserWarning, match="ExchangesAlways exchanges gradients in every backward")
    with warning if run.is_global_zero else nullcontext():
        context = run.no_backward_sync(model)
    with context, run.no_backward_sync(model, enabled=False):
        run.backward(model(torch.full((1, 1), float(run.global_rank))).sum())
    return model.module.weight.grad.item()


def test_a_strategy_that_always_exchanges_warns():
    assert run_ranks(accumulate_where_it_cannot_be, 2) == [0.5, 0.5]


# The other parts of a step


def clip(by):
    run = launched()
    model, optimizer = run.setup(*model_and_optimizer())
    (x, y), *_ = share(data(), 4)
    run.backward(nn.functional.mse_loss(model(x), y))
    norm = run.clip_gradients(model, optimizer, **by)
    return gradients(model.module), norm


@pytest.mark.parametrize("by", [{"max_norm": 0.1}, {"clip_val": 0.01}])
def test_clipping(by):
    model, _ = model_and_optimizer()
    x, y = next(iter(DataLoader(data(), 8)))
    nn.functional.mse_loss(model(x), y).backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), 0.1) if "max_norm" in by else None
    if expected is None:
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
    for result, norm in run_ranks(clip, 2, by):
        assert_close([result], gradients(model), atol=1e-6, rtol=1e-6)
        assert (norm is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(norm, expected)


def loop_in_bfloat16():
    run = launched(precision="bf16-mixed")
    model, optimizer = run.setup(*model_and_optimizer())
    x, y = next(iter(share(data(), 4)))
    with run.autocast():
        assert nn.functional.linear(x, torch.ones(1, 4)).dtype == torch.bfloat16
    output = model(x)
    run.backward(nn.functional.mse_loss(output, y))
    optimizer.step()
    with run.init_tensor():
        device = torch.ones(1).device
    with run.init_module(empty_init=True):
        layer = nn.Linear(2, 2)
    return output.dtype, str(device), run.to_device(layer).weight.dtype, weights(model)


def test_precision_and_init():
    first, second = run_ranks(loop_in_bfloat16, 2)
    assert first[:3] == second[:3] == (torch.float32, "cpu", torch.float32)
    assert_close([first[3]], second[3])


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)

    def look(self, x):
        return self.layer(x)


def lightning_module():
    torch.manual_seed(dist.get_rank())  # DDP starts from the weights of rank 0
    run = launched()
    net = Net()
    model, optimizer = run.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert isinstance(model._forward_module, DistributedDataParallel)
    for index, batch in enumerate(share(data(), 4)):
        optimizer.zero_grad()
        run.backward(model.training_step(batch, index))
        optimizer.step()
    with pytest.raises(RuntimeError, match="mark_forward_method"):
        model.look(torch.ones(1, 4))
    model.mark_forward_method("look")
    assert model.look(torch.ones(1, 4)).shape == (1, 1)
    assert net.all_gather(torch.tensor(float(run.global_rank))).tolist() == [0, 1]
    return weights(model)


def test_the_steps_of_a_lightning_module_go_through_the_wrapper():
    first, second = run_ranks(lightning_module, 2)
    assert set(first) == {"layer.weight", "layer.bias"}
    assert_close([first], second, atol=0, rtol=0)


def frozen_module():
    run = launched()
    model = run.setup(nn.Linear(1, 1).requires_grad_(False))
    return type(model._forward_module).__name__


def test_what_trains_nothing_is_not_wrapped():
    assert run_ranks(frozen_module, 2) == ["Linear", "Linear"]


# Collectives


def collectives():
    run = launched()
    rank = run.global_rank
    mine = torch.tensor([float(rank), 1.0])
    result = {
        "ranks": (run.global_rank, run.local_rank, run.node_rank, run.world_size, run.is_global_zero),
        "mean": run.all_reduce(mine).tolist(),
        "given": mine.tolist(),
        "sum": run.all_reduce({"a": rank, "b": (rank + 0.5, "text")}, reduce_op="sum"),
        "max": run.all_reduce([rank], reduce_op="max"),
        "gathered": run.all_gather({"scalar": torch.tensor(rank), "pair": mine, "number": rank}),
        "second": run.broadcast({"from": rank}, src=1),
        "first": run.broadcast(rank),
    }
    run.barrier("the end")
    return result


def test_collectives():
    for rank, result in enumerate(run_ranks(collectives, 2)):
        assert result["ranks"] == (rank, rank, 0, 2, rank == 0)
        assert (result["mean"], result["given"]) == ([0.5, 1.0], [rank, 1.0])
        assert (result["sum"]["a"].item(), result["sum"]["b"][0].item(), result["sum"]["b"][1]) == (1, 2.0, "text")
        assert result["max"][0].item() == 1
        gathered = result["gathered"]
        assert gathered["scalar"].tolist() == gathered["number"].tolist() == [0, 1]
        assert gathered["pair"].tolist() == [[0, 1], [1, 1]]
        assert (result["second"], result["first"]) == ({"from": 1}, 0)


def gathered_gradient():
    run = launched()
    mine = torch.tensor([run.global_rank + 1.0], requires_grad=True)
    (run.all_gather(mine, sync_grads=True) ** 2).sum().backward()
    assert not run.all_gather(mine).requires_grad
    return mine.grad.item()


def test_gradients_flow_back_through_a_gather():
    assert run_ranks(gathered_gradient, 2) == [4.0, 8.0]


def rank_zero_first(path):
    run = launched()
    with run.rank_zero_first():
        if run.global_rank == 0:
            with open(path, "w") as file:
                file.write("downloaded")
        with open(path) as file:
            return file.read()


def test_rank_zero_goes_first(tmp_path):
    assert run_ranks(rank_zero_first, 2, str(tmp_path / "file")) == ["downloaded"] * 2


# State


def save(path):
    run = launched()
    model, optimizer = run.setup(*model_and_optimizer())
    for x, y in share(data(), 4):
        optimizer.zero_grad()
        run.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
    state = {"model": model, "optimizer": optimizer, "epoch": 3}
    run.save(path, state)
    assert torch.load(path, weights_only=True)["epoch"] == 3  # it is complete for all when `save` returns
    run.save(f"{path}.part", state, filter={"model": lambda name, value: name.endswith("bias")})
    if run.is_global_zero:
        torch.save(model.state_dict(), f"{path}.raw")
    run.barrier()
    return weights(model)


def load(path):
    run = launched()
    model, optimizer = run.setup(*model_and_optimizer())
    state = {"model": model, "epoch": 0}
    left = run.load(path, state | {"optimizer": optimizer})
    assert left == {}
    assert run.load(path, state).keys() == {"optimizer"}
    assert state["epoch"] == 3
    raw, _ = model_and_optimizer()
    raw = run.setup(raw)
    run.load_raw(f"{path}.raw", raw)
    part = torch.load(f"{path}.part", weights_only=True)["model"]
    return weights(model), weights(raw), sorted(part), len(optimizer.state_dict()["state"])


def test_a_checkpoint_is_that_of_one_process(tmp_path):
    path = str(tmp_path / "a.ckpt")
    _, expected = raw_loop()
    assert_close(run_ranks(save, 2, path), expected, atol=1e-6, rtol=1e-6)
    for model, raw, part, slots in run_ranks(load, 2, path):
        assert_close([model, raw], expected, atol=1e-6, rtol=1e-6)
        assert (part, slots) == (["0.bias", "2.bias"], 4)
    alone = Fabric(accelerator="cpu", devices=1)
    model, optimizer = alone.setup(*model_and_optimizer())
    alone.load(path, {"model": model, "optimizer": optimizer, "epoch": 0})
    assert_close([weights(model)], expected, atol=1e-6, rtol=1e-6)


# Launch


def before_launch():
    run = fabric()
    uses = [
        lambda: run.setup(nn.Linear(1, 1)),
        lambda: run.setup_module(nn.Linear(1, 1)),
        lambda: run.setup_optimizers(model_and_optimizer()[1]),
        lambda: run.setup_dataloaders(DataLoader(data())),
        lambda: run.barrier(),
        lambda: run.broadcast(1),
        lambda: run.all_gather(1),
        lambda: run.all_reduce(1),
        lambda: run.rank_zero_first().__enter__(),
        lambda: run.init_module(),
        lambda: run.save("nowhere", {}),
        lambda: run.load("nowhere"),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"DDPStrategy works with several.*fabric\.launch\(\)"):
            use()
    assert run.launch(lambda run, start, stop: range(start, stop), 1, stop=3) == range(1, 3)
    run.launch()
    return run.launch(lambda run: run.all_reduce(1, reduce_op="sum").item())


def test_the_processes_are_launched_first():
    assert run_ranks(before_launch, 2, backend=None) == [2, 2]


class Summed(Fabric):
    def run(self, number, scale=1):
        return self.all_reduce(number * scale, reduce_op="sum").item()


def overridden_run():
    return Summed(accelerator="cpu", devices=2).run(2, scale=3)


def test_an_overridden_run_launches():
    assert run_ranks(overridden_run, 2) == [12, 12]
