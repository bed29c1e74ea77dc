"""Groups of torch.distributed: on two real processes, and the life of a group on one."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist

from fulmen.fabric.collectives import TorchCollective
from processes import run_ranks


def ones(factor=1.0):
    return torch.full((2,), float(factor))


def zeros():
    return [torch.zeros(2), torch.zeros(2)]


def values(result):
    """Tensors as numbers, lists as lists."""
    return [values(part) for part in result] if isinstance(result, list) else result.tolist()


def of_tensors(name, options):
    """What each collective gives to this rank, whose tensor holds its rank + 1."""
    collective, rank = TorchCollective(), dist.get_rank()
    mine, parts = ones(rank + 1), [ones(10 * rank), ones(10 * rank + 1)]
    arguments = {
        "broadcast": (mine,),
        "all_reduce": (mine,),
        "reduce": (mine,),
        "all_gather": (zeros(), mine),
        "gather": (mine, zeros()),
        "scatter": (torch.zeros(2), parts),
        "reduce_scatter": (torch.zeros(2), parts),
        "all_to_all": (zeros(), parts),
    }
    return values(getattr(collective, name)(*arguments[name], **options))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("broadcast", {"src": 1}, [[2, 2], [2, 2]]),
        ("all_reduce", {}, [[3, 3], [3, 3]]),
        ("all_reduce", {"op": "max"}, [[2, 2], [2, 2]]),
        ("all_reduce", {"op": "Product"}, [[2, 2], [2, 2]]),
        ("all_reduce", {"op": dist.ReduceOp.MIN}, [[1, 1], [1, 1]]),
        ("all_gather", {}, [[[1, 1], [2, 2]], [[1, 1], [2, 2]]]),
        ("gather", {"dst": 1}, [[[0, 0], [0, 0]], [[1, 1], [2, 2]]]),
        ("scatter", {"src": 1}, [[10, 10], [11, 11]]),
        ("reduce_scatter", {}, [[10, 10], [12, 12]]),
        ("all_to_all", {}, [[[0, 0], [10, 10]], [[1, 1], [11, 11]]]),
    ],
)
def test_tensors(name, options, expected):
    assert run_ranks(of_tensors, 2, name, options) == expected


def test_reduce_fills_the_destination():
    assert run_ranks(of_tensors, 2, "reduce", {"dst": 1})[1] == [3, 3]


def of_objects():
    collective, rank = TorchCollective(), dist.get_rank()
    mine, empty = {"rank": rank}, [None, None]
    return (
        collective.broadcast_object_list([mine, rank], src=1),
        collective.all_gather_object(list(empty), mine),
        collective.gather_object(mine, list(empty), dst=1),
        collective.scatter_object_list([None], ["for 0", "for 1"], src=0),
    )


def test_objects():
    everybodys = [{"rank": 0}, {"rank": 1}]
    first, second = run_ranks(of_objects, 2)
    assert first == ([{"rank": 1}, 1], everybodys, [None, None], ["for 0"])
    assert second == ([{"rank": 1}, 1], everybodys, everybodys, ["for 1"])


def sends_and_receives():
    collective = TorchCollective()
    if collective.rank == 0:
        collective.send(ones(5), dst=1, tag=3)
    tensor = ones(0) if collective.rank == 0 else collective.recv(ones(0), src=0, tag=3)
    collective.barrier()
    collective.monitored_barrier(timeout=datetime.timedelta(seconds=20), wait_all_ranks=True)
    return tensor.tolist()


def test_from_one_to_another():
    assert run_ranks(sends_and_receives, 2) == [[0, 0], [5, 5]]


def groups_of_one():
    own = [TorchCollective().create_group(ranks=[rank]) for rank in range(2)]
    places = [(collective.rank, collective.world_size) for collective in own]
    mine = own[dist.get_rank()]
    alone = mine.all_reduce(ones(7)).tolist()
    for collective in own:
        collective.teardown()
    return places, alone, TorchCollective().all_reduce(ones(7)).tolist()


def test_groups_of_some():
    assert run_ranks(groups_of_one, 2) == [
        ([(0, 1), (-1, -1)], [7, 7], [14, 14]),
        ([(-1, -1), (0, 1)], [7, 7], [14, 14]),
    ]


@pytest.fixture
def _no_group_is_left():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def port(monkeypatch):
    """Of a store that is here already, so that no port has to be found."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield str(store.port)
    del store


ALONE = {"backend": "gloo", "rank": 0, "world_size": 1}


@pytest.mark.usefixtures("_no_group_is_left")
def test_setup_makes_the_group_of_all_and_teardown_ends_it(port):
    collective = TorchCollective()
    assert not collective.is_initialized()
    with pytest.raises(RuntimeError, match="`TorchCollective` has no group"):
        collective.all_reduce(ones())
    assert collective.setup(main_address="127.0.0.1", main_port=port, **ALONE) is collective
    assert collective.is_initialized()
    assert collective.manages_default_group
    assert collective.group is dist.group.WORLD
    assert (collective.rank, collective.world_size) == (0, 1)
    assert {"MASTER_ADDR", "MASTER_PORT"}.isdisjoint(os.environ)
    assert collective.setup(main_address="elsewhere", main_port="1", **ALONE) is collective
    assert collective.teardown() is collective
    assert not collective.manages_default_group
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="has no group"):
        collective.teardown()


@pytest.mark.usefixtures("_no_group_is_left")
def test_variables_of_the_environment_come_back(port, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    TorchCollective().setup(main_port=port, **ALONE)
    assert os.environ["MASTER_PORT"] == "1"


@pytest.mark.usefixtures("_no_group_is_left")
def test_a_group_of_others_is_left_alone(port):
    owner = TorchCollective().setup(main_address="127.0.0.1", main_port=port, **ALONE)
    guest = TorchCollective().setup()
    assert not guest.manages_default_group
    guest.create_group(ranks=[0])
    assert guest.group is not dist.group.WORLD
    with pytest.raises(RuntimeError, match="has a group"):
        guest.create_group()
    guest.teardown().teardown()
    assert dist.is_initialized()
    late = TorchCollective().create_group()
    owner.teardown()
    late.teardown()  # its group ended with that of all


@pytest.mark.usefixtures("_no_group_is_left")
@pytest.mark.parametrize("op", ["bogus", "mean", 3])
def test_unknown_operations(port, op):
    collective = TorchCollective().setup(main_address="127.0.0.1", main_port=port, **ALONE)
    with pytest.raises(ValueError, match=f"op={op!r} is not known. Type one of: sum, avg"):
        collective.all_reduce(ones(), op=op)


def test_a_torch_without_distributed(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert not TorchCollective.is_initialized()
    with pytest.raises(RuntimeError, match=r"without `torch\.distributed`"):
        TorchCollective()
