import os

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import RandomSampler

from fulmen.fabric.strategies import SingleDeviceStrategy
from fulmen.fabric.utilities.distributed import DistributedSamplerWrapper, is_shared_filesystem
from processes import run_ranks


class Chosen:
    """A sampler that knows its epoch."""

    epoch = 0

    def __iter__(self):
        return iter([10 + self.epoch, 20, 30, 40, 50])

    def __len__(self):
        return 5

    def set_epoch(self, epoch):
        self.epoch = epoch


def drawn_by_two(**arguments):
    return [list(DistributedSamplerWrapper(Chosen(), num_replicas=2, rank=rank, **arguments)) for rank in range(2)]


def test_the_indices_are_shared_out():
    assert drawn_by_two(shuffle=False) == [[10, 30, 50], [20, 40, 10]]
    assert drawn_by_two(shuffle=False, drop_last=True) == [[10, 30], [20, 40]]


def test_both_samplers_learn_the_epoch():
    wrapper = DistributedSamplerWrapper(Chosen(), num_replicas=1, rank=0, shuffle=False)
    wrapper.set_epoch(3)
    assert wrapper.epoch == 3
    assert list(wrapper) == [13, 20, 30, 40, 50]
    assert list(DistributedSamplerWrapper(RandomSampler([1]), num_replicas=1, rank=0)) == [0]
    DistributedSamplerWrapper(RandomSampler([1]), num_replicas=1, rank=0).set_epoch(1)


def test_a_length_is_needed():
    with pytest.raises(TypeError, match="`generator` has no length"):
        DistributedSamplerWrapper((i for i in range(3)), num_replicas=1, rank=0)


# -------------------------------------------------------------------------------------------- the files of processes


class Group(SingleDeviceStrategy):
    """Talks through the group of the test's processes."""

    def __init__(self):
        super().__init__(device="cpu")
        self.world_size = dist.get_world_size()

    @property
    def is_global_zero(self):
        return dist.get_rank() == 0

    def broadcast(self, obj, src=0):
        objects = [obj]
        dist.broadcast_object_list(objects, src)
        return objects[0]

    def barrier(self, name=None):
        dist.barrier()

    def reduce_boolean_decision(self, decision, all=True):
        count = torch.tensor(int(decision))
        dist.all_reduce(count)
        return count.item() == self.world_size if all else count.item() > 0


def look(folder, own):
    path = os.path.join(folder, str(dist.get_rank())) if own else folder
    if own != "not there":
        os.makedirs(path, exist_ok=True)
    return is_shared_filesystem(Group(), path, timeout=0.2), sorted(os.listdir(folder))


@pytest.mark.parametrize(("own", "shared"), [(False, True), (True, False), ("not there", False)])
def test_whether_processes_see_the_same_files(tmp_path, own, shared):
    results = run_ranks(look, 2, str(tmp_path), own)
    assert [result for result, _ in results] == [shared, shared]
    assert not any(name.startswith(".fulmen") for _, _, names in os.walk(tmp_path) for name in names)


def test_one_process_shares_its_files(tmp_path, monkeypatch):
    strategy = SingleDeviceStrategy(device="cpu")
    monkeypatch.chdir(tmp_path)
    for path in (None, tmp_path, tmp_path / "not there", "s3://bucket"):
        assert is_shared_filesystem(strategy, path)
    assert os.listdir(tmp_path) == []


def test_a_url_is_the_same_for_everybody():
    strategy = SingleDeviceStrategy(device="cpu")
    strategy.world_size = 2
    assert is_shared_filesystem(strategy, "s3://bucket")
