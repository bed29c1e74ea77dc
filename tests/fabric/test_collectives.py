"""The collectives of a single process."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import collectives


def test_tensors_come_back_as_they_are():
    tensor = torch.ones(3)
    assert collectives.reduce(tensor, reduce_op="sum") is tensor
    assert collectives.all_gather(tensor, sync_grads=True) is tensor
    assert collectives.broadcast(tensor, src=0) is tensor
    assert collectives.barrier("here") is None


@given(st.booleans(), st.booleans())
def test_a_decision_is_its_own(decision, every):
    assert collectives.reduce_boolean_decision(decision, all=every) is decision
