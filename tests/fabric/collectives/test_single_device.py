"""The group of one process."""

import pytest
import torch

from fulmen.fabric.collectives import Collective, SingleDeviceCollective


def test_it_is_always_there():
    collective = SingleDeviceCollective()
    assert isinstance(collective, Collective)
    assert (collective.rank, collective.world_size) == (0, 1)
    assert SingleDeviceCollective.is_available()
    assert SingleDeviceCollective.is_initialized()
    assert collective.setup(anything=1) is collective
    collective.barrier()


def test_the_life_of_its_group():
    collective = SingleDeviceCollective()
    with pytest.raises(RuntimeError, match="`SingleDeviceCollective` has no group"):
        collective.group  # noqa: B018
    assert collective.create_group(ranks=[0]) is collective
    assert collective.group is collective.group
    with pytest.raises(RuntimeError, match="has a group"):
        collective.create_group()
    assert collective.teardown() is collective
    with pytest.raises(RuntimeError, match="no group of its own"):
        collective.teardown()


def test_tensors_are_given_back():
    collective, tensor, other = SingleDeviceCollective(), torch.ones(2), torch.zeros(2)
    assert collective.broadcast(tensor, 0) is tensor
    assert collective.all_reduce(tensor, op="sum") is tensor
    assert collective.reduce(tensor, dst=0, op="sum") is tensor
    assert collective.recv(tensor, src=0) is tensor
    assert collective.send(tensor, dst=0) is None
    assert collective.scatter(other, [tensor], src=0) is tensor
    assert collective.reduce_scatter(other, [tensor], op="sum") is tensor
    assert [part is tensor for part in collective.all_gather([other], tensor)] == [True]
    assert [part is tensor for part in collective.gather(tensor, [other], dst=0)] == [True]
    assert [part is tensor for part in collective.all_to_all([other], [tensor])] == [True]


def test_a_collective_has_to_be_complete():
    with pytest.raises(TypeError, match="abstract"):
        Collective()
