"""The state of shards: gathered on one process, and divided again."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate

from fulmen.fabric.strategies import sharding
from processes import run_ranks


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def sharded():
    module = Tied()
    fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return module


def gather_and_divide():
    keep = dist.get_rank() == 0
    module, whole = sharded(), Tied()
    state = module.state_dict()
    assert sharding.has_shards({"a": [state]})
    assert not sharding.has_shards({"a": [whole.state_dict()]})
    nested = sharding.gather({"a": [state["first.weight"], 3]}, keep)
    gathered = sharding.whole_state(state, keep)
    if keep:
        assert nested["a"][1] == 3
        assert torch.equal(nested["a"][0], whole.first.weight)
        assert {name: type(value) for name, value in gathered.items()} == dict.fromkeys(
            whole.state_dict(), torch.Tensor
        )
    else:
        assert nested == {"a": [None, 3]}
        assert gathered == {}
    part = sharding.shard_like(whole.first.weight.detach(), state["first.weight"])
    assert torch.equal(part.to_local(), state["first.weight"].to_local())
    assert part.to_local().untyped_storage().nbytes() == part.to_local().nbytes
    assert sharding.shard_like(torch.ones(5), state["first.weight"]).placements == (Replicate(),)
    assert sharding.shard_like(part, state["first.weight"]) is part


def test_gathering_and_dividing():
    run_ranks(gather_and_divide, 2)


def states_of_optimizers():
    module = sharded()
    optimizer = torch.optim.Adam([{"params": [module.second.bias], "lr": 0.5}, {"params": [module.first.weight]}])
    module(torch.ones(2, 3) * dist.get_rank()).sum().backward()
    optimizer.step()
    names = sharding.named_parameters_of(iter([module]))
    named = sharding.by_name(optimizer, names)
    assert [group["params"] for group in named["param_groups"]] == [["second.bias"], ["first.weight"]]
    assert sharding.by_position(optimizer, named, names)["param_groups"] == optimizer.state_dict()["param_groups"]
    whole = copy.deepcopy(sharding.whole_optimizer_state(optimizer, keep=True))
    assert sharding.by_position(optimizer, whole, names) == whole

    for state in (whole, named):
        again = sharded()
        other = torch.optim.Adam([{"params": [again.second.bias]}, {"params": [again.first.weight]}])
        sharding.load_optimizer(other, state, sharding.named_parameters_of(iter([again])))
        assert [group["lr"] for group in other.param_groups] == [0.5, 1e-3]
        average = other.state[again.first.weight]["exp_avg"]
        assert isinstance(average, DTensor)
        assert torch.equal(average.to_local(), optimizer.state[module.first.weight]["exp_avg"].to_local())
        assert other.state[again.first.weight]["step"] == 1


def test_states_of_optimizers_by_number_and_by_name():
    run_ranks(states_of_optimizers, 2)


def copy_for_average():
    module = sharded()
    second = copy.deepcopy(sharding.copy_of_shards(module))
    assert list(second.state_dict()) == list(module.state_dict())
    assert len(list(second.parameters())) == 2
    assert second.first.weight is second.second.weight
    assert isinstance(second.first.weight, DTensor)
    assert second.first.weight is not module.first.weight
    sharding.load_module(second, {"second.bias": torch.arange(3.0)}, strict=False)
    return sharding.gather(second.second.bias.detach(), keep=True).tolist()


def test_a_second_set_of_shards():
    assert run_ranks(copy_for_average, 2) == [[0.0, 1.0, 2.0]] * 2
