"""Collectives over real processes, and without a process group."""

import pytest
import torch
import torch.distributed as dist

from fulmen.fabric import distributed
from processes import run_ranks


def reduce_in_all_ways():
    rank = dist.get_rank()
    given = torch.tensor([1.0 + rank, 10.0])
    results = {name: distributed.reduce(given, reduce_op=name) for name in ("mean", "avg", "SUM", "max", "min", None)}
    assert given.tolist() == [1.0 + rank, 10.0]
    results["integers"] = distributed.reduce(torch.tensor(rank))
    results["operation"] = distributed.reduce(given, reduce_op=dist.ReduceOp.PRODUCT)
    results["no tensor"] = distributed.reduce("text")
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in results.items()}


def test_reductions():
    first, second = run_ranks(reduce_in_all_ways, 2)
    assert first == second
    assert first["mean"] == first["avg"] == [1.5, 10.0]
    assert first["SUM"] == first[None] == [3.0, 20.0]
    assert (first["max"], first["min"], first["operation"]) == ([2.0, 10.0], [1.0, 10.0], [2.0, 100.0])
    assert first["integers"] == 0.5
    assert first["no tensor"] == "text"


def gather_and_tell():
    rank = dist.get_rank()
    weight = torch.tensor([float(rank + 1)], requires_grad=True)
    gathered = distributed.all_gather(weight, sync_grads=True)
    (gathered * torch.tensor([[1.0], [10.0]])).sum().backward()
    plain = distributed.all_gather(torch.full((2, 3), rank))
    told = distributed.broadcast({"from": rank}, src=1)
    return plain.shape, gathered.flatten().tolist(), weight.grad.item(), told, distributed.all_gather_object(rank * 2)


def test_gathering_and_broadcasting():
    for rank, (shape, gathered, gradient, told, objects) in enumerate(run_ranks(gather_and_tell, 2)):
        assert shape == (2, 2, 3)
        assert gathered == [1.0, 2.0]
        assert gradient == [2.0, 20.0][rank]  # of both ranks' losses
        assert told == {"from": 1}
        assert objects == [0, 2]


def decide_and_wait():
    rank = dist.get_rank()
    distributed.barrier("here")
    distributed.wait_long("there")
    return (
        distributed.decide(rank == 0),
        distributed.decide(rank == 0, all=False),
        distributed.decide(True),
        distributed.decide(False, all=False),
    )


def test_decisions():
    assert run_ranks(decide_and_wait, 3) == [(False, True, True, False)] * 3


def test_without_a_process_group_everything_comes_back():
    tensor = torch.ones(2)
    assert distributed.reduce(tensor) is tensor
    assert distributed.all_gather(tensor) is tensor
    assert distributed.broadcast(tensor) is tensor
    assert distributed.all_gather_object(3) == [3]
    assert distributed.decide(True)
    distributed.barrier()
    distributed.wait_long()
    distributed.destroy()


def reduce_wrongly():
    with pytest.raises(ValueError, match="Type one of: mean, sum, min, max, product"):
        distributed.reduce(torch.ones(1), reduce_op="median")


def test_an_unknown_reduction():
    run_ranks(reduce_wrongly, 1)
