from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from fulmen.overrides.distributed import (
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
    prepare_for_backward,
)


@given(length=st.integers(1, 40), world_size=st.integers(1, 8), shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_every_sample_comes_once(length: int, world_size: int, shuffle: bool, epoch: int) -> None:
    if length < world_size:
        with pytest.raises(ValueError, match="cannot be shared out"):
            UnrepeatedDistributedSampler(range(length), num_replicas=world_size, rank=0)
        return
    drawn: list[list[int]] = []
    for rank in range(world_size):
        sampler = UnrepeatedDistributedSampler(range(length), num_replicas=world_size, rank=rank, shuffle=shuffle)
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
        assert len(drawn[-1]) == len(sampler)
    assert sorted(index for part in drawn for index in part) == list(range(length))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_the_indices_of_a_sampler() -> None:
    drawn = [
        list(UnrepeatedDistributedSamplerWrapper([7, 8, 9], num_replicas=2, rank=rank, shuffle=False))
        for rank in range(2)
    ]
    assert drawn == [[7, 9], [8]]


@pytest.fixture
def group(tmp_path: Any) -> Any:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Linear(2, 1)
        self.unused = torch.nn.Linear(2, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_module_that_was_not_called_for_its_backward_pass(group: Any) -> None:
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    for _ in range(2):  # without the preparation the second pass waits for the first one's parameters
        loss = model.module.used(torch.ones(1, 2)).sum()
        prepare_for_backward(model, {"loss": loss})
        loss.backward()
    assert model.require_forward_param_sync
    assert model.module.unused.weight.grad is None
    with model.no_sync():
        prepare_for_backward(model, loss)
    assert not model.require_forward_param_sync
