import pytest
from torch.utils.data import RandomSampler

from fulmen.fabric.utilities.distributed import DistributedSamplerWrapper


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
