"""FSDP in a loop of the user's own: the same numbers as without it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from fulmen import Fabric
from fulmen.fabric.strategies.sharding import gather
from fulmen.strategies import FSDPStrategy
from processes import run_ranks
from sharded_runs import GLOBAL_BATCH, Blocks, data, difference, share


def optimizer_of(module):
    return torch.optim.AdamW(module.parameters(), 0.02)


def epoch(fabric, model, optimizer):
    """Windows of two batches, the second through a step method; gives back the norms of the gradients."""
    norms = []
    for index, batch in enumerate(fabric.setup_dataloaders(share(data(32)), use_distributed_sampler=False)):
        with fabric.no_backward_sync(model, enabled=index % 2 == 0):
            loss = model.training_step(batch, index) if index % 2 else nn.functional.mse_loss(model(batch[0]), batch[1])
            fabric.backward(loss / 2)
        if index % 2:
            norms.append(fabric.clip_gradients(model, optimizer, max_norm=0.5))
            optimizer.step()
            optimizer.zero_grad()
    return norms


def train(path, kind, together):
    fabric = Fabric(accelerator="cpu", devices=2, strategy=FSDPStrategy(state_dict_type=kind))
    fabric.launch()
    module = Blocks()
    if together:
        model, optimizer = fabric.setup(module, optimizer_of(module))
    else:
        model = fabric.setup_module(module)
        optimizer = fabric.setup_optimizers(optimizer_of(model))
    norms = epoch(fabric, model, optimizer)
    fabric.save(path, {"model": model, "optimizer": optimizer, "epoch": 1})
    norms += epoch(fabric, model, optimizer)
    first = gather(dict(module.state_dict()), keep=True)
    state = {"model": model, "optimizer": optimizer, "epoch": 0}
    assert fabric.load(path, state) == {}
    epoch(fabric, model, optimizer)
    return first, gather(dict(module.state_dict()), keep=True), state["epoch"], norms


def train_alone():
    module = Blocks()
    optimizer, norms = optimizer_of(module), []
    for _ in range(2):
        for index, batch in enumerate(DataLoader(data(32), GLOBAL_BATCH)):
            (module.loss(batch) / 2).backward()
            if index % 2:
                norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.5))
                optimizer.step()
                optimizer.zero_grad()
    return dict(module.state_dict()), norms


@pytest.mark.parametrize(("kind", "together"), [("full", True), ("sharded", False)])
def test_a_loop_of_ones_own(tmp_path, kind, together):
    expected, norms = train_alone()
    for first, again, number, found in run_ranks(train, 2, str(tmp_path / "saved"), kind, together):
        assert difference(expected, first) < 2e-6
        assert difference(expected, again) < 2e-6
        assert number == 1
        assert difference(norms, found) < 1e-5


class WithMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

    def score(self, x):
        return self(x) + self.layer.bias  # a parameter of its own, outside of a forward


def other_things():
    fabric = Fabric(accelerator="cpu", devices=1, strategy="fsdp")
    fabric.launch()
    module = WithMethod()
    stale = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    stale.step()
    with fabric.init_module(empty_init=True):
        empty = nn.Linear(4, 1)
    assert empty.weight.is_meta
    assert fabric.setup(empty).weight.device.type == "cpu"
    model = fabric.setup(module)
    with pytest.raises(RuntimeError, match="Adam has the state of 2 parameters from before they were sharded"):
        fabric.setup_optimizers(stale)
    with pytest.raises(RuntimeError, match="mark_forward_method"):
        model.score(torch.ones(2, 4))
    model.mark_forward_method("score")
    return model.score(torch.ones(2, 4)).shape, dist.get_world_size()


def test_methods_empty_modules_and_stale_optimizers():
    assert run_ranks(other_things, 1) == [(torch.Size([2, 1]), 1)]
