"""Which modules are sharded each by itself."""

import functools

import pytest
from torch import nn
from torch.distributed.fsdp.wrap import (
    CustomPolicy,
    ModuleWrapPolicy,
    lambda_auto_wrap_policy,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
)

from fulmen.fabric.strategies.fsdp_units import bottom_up, choose_units
from sharded_runs import Block, Blocks


def names(root, policy=None, marked=()):
    found = {module: name for name, module in root.named_modules()}
    return [found[unit] for unit in choose_units(root, policy, marked)]


BLOCKS = ["blocks.0", "blocks.1"]
LINEARS = ["first", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "last"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, BLOCKS),
        (set(), []),
        ({Block}, BLOCKS),
        ([nn.Linear], LINEARS),
        ((Block, nn.ModuleList, Blocks, nn.ReLU), BLOCKS),
        (ModuleWrapPolicy({Block}), BLOCKS),
        (CustomPolicy(lambda module: isinstance(module, Block)), BLOCKS),
        (functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={Block}), BLOCKS),
        (functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda m: isinstance(m, nn.Linear)), LINEARS),
        (functools.partial(size_based_auto_wrap_policy, min_num_params=50), BLOCKS),
        (functools.partial(size_based_auto_wrap_policy, min_num_params=1000), []),
        (
            functools.partial(size_based_auto_wrap_policy, min_num_params=20),
            ["first", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"],
        ),
    ],
)
def test_policies(policy, expected):
    assert names(Blocks(), policy) == expected


def test_an_inner_unit_comes_before_the_one_around_it():
    assert names(Blocks(), {Block, nn.Linear})[1:4] == ["blocks.0.up", "blocks.0.down", "blocks.0"]


def test_blocks_are_found_wherever_they_are_and_what_is_in_them_stays():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            return x

    root = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.ModuleList(Experts() for _ in range(2))),
            "heads": nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Embedding(2, 2)]),
            "lists": nn.ModuleList(nn.ModuleList([nn.Linear(2, 2)]) for _ in range(2)),
        }
    )
    assert names(root) == ["encoder.0.0", "encoder.0.1"]


def test_marked_modules_are_units():
    root = Blocks()
    assert names(root, None, [root.last]) == ["last"]
    assert names(root, {Block}, [root.last]) == [*BLOCKS, "last"]


def test_units_that_would_part_a_shared_parameter_are_left_out():
    root = Blocks()
    root.last.weight = nn.Parameter(root.first.weight[:1].detach())
    root.blocks[1].down.bias = root.first.bias
    with pytest.warns(UserWarning, match=r"'first.bias', 'blocks.1.down.bias'.*one and the same.*'Block'"):
        assert names(root, {Block}) == ["blocks.0"]
    root = Blocks()
    root.blocks[1].down.weight = root.blocks[1].up.weight
    assert names(root, {Block}) == BLOCKS


def test_what_is_no_policy_is_refused():
    with pytest.raises(TypeError, match=r"got 3\. Type: \{nn\.TransformerEncoderLayer\}"):
        choose_units(Blocks(), 3)


def test_bottom_up():
    root = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
    shared = root[0][0]
    root.append(shared)
    assert list(bottom_up(root)) == [shared, root[0], root[1], root]
