"""What `Kept` puts back."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningDataModule
from fulmen.tuner.kept import Kept


class Holder(nn.Module):
    pass


def test_weights_gradients_and_storage_come_back():
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    weight, gradient, pointer = module.weight.clone(), module.weight.grad, module.weight.data_ptr()
    values = gradient.clone()
    kept = Kept(module)
    gradient.zero_()
    module.weight.grad = None
    module.double()
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    kept.restore()
    assert torch.equal(module.weight, weight)
    assert module.weight.dtype == torch.float32
    assert module.weight.data_ptr() == pointer
    assert module.weight.grad is gradient
    assert torch.equal(gradient, values)


def test_not_a_number_comes_back_bit_by_bit():
    module = nn.Linear(1, 1)
    bits = torch.tensor([[0x7FC00123]], dtype=torch.int32)
    module.weight.data = bits.view(torch.float32).clone()
    kept = Kept(module)
    module.weight.data.zero_()
    kept.restore()
    assert torch.equal(module.weight.data.view(torch.int32), bits)


def test_modes_requires_grad_and_hooks_come_back():
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    module[0].eval()
    module[0].bias.requires_grad_(False)
    kept = Kept(module)
    module.train()
    module.requires_grad_(True)
    module[0].weight.requires_grad_(False)
    module.register_forward_hook(lambda *_: pytest.fail("still there"))
    kept.restore()
    assert [part.training for part in module.modules()] == [True, False, True]
    assert [p.requires_grad for p in module.parameters()] == [True, False]
    module(torch.ones(1, 1))


def test_submodules_made_later_go():
    module = nn.Sequential(nn.Linear(1, 1))
    first = module[0]
    kept = Kept(module)
    module.append(nn.Linear(1, 1))
    module[0] = nn.Linear(3, 3)
    module.extra = nn.Parameter(torch.zeros(1))
    kept.restore()
    assert list(module) == [first]
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]


def test_tied_weights_stay_tied():
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    kept = Kept(module)
    module.double()
    module[1].weight = nn.Parameter(torch.zeros(2, 2))
    kept.restore()
    assert module[1].weight is module[0].weight


leaves = st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.none()
nestings = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def destroy(value):
    if isinstance(value, dict):
        for inner in value.values():
            destroy(inner)
        value.clear()
        value["other"] = 1
    elif isinstance(value, list):
        for inner in value:
            destroy(inner)
        value[:] = ["other"]


@given(nestings)
def test_attributes_of_any_nesting_come_back(value):
    import copy

    module = Holder()
    module.value = value
    expected = copy.deepcopy(value)
    kept = Kept(module)
    for _ in range(2):
        destroy(value)
        module.value = "other"
        module.added = 1
        kept.restore()
        assert module.value is value
        assert module.value == expected
        assert not hasattr(module, "added")


def test_plain_tensors_sets_and_cycles():
    module = Holder()
    module.tensor, module.names = torch.zeros(2), {"a"}
    module.cycle = [module.names]
    module.cycle.append(module.cycle)
    kept = Kept(module)
    module.tensor.add_(torch.ones(2, requires_grad=True))
    module.names.add("b")
    kept.restore()
    assert torch.equal(module.tensor, torch.zeros(2))
    assert module.tensor.is_leaf
    assert not module.tensor.requires_grad
    assert module.names == {"a"}


def test_tensors_made_in_inference_mode():
    module = Holder()
    with torch.inference_mode():
        module.seen = torch.ones(2)
        kept = Kept(module)
        module.seen.zero_()
        kept.restore()
    assert torch.equal(module.seen, torch.ones(2))
    assert module.seen.is_inference()


def test_what_is_on_no_device_is_left_alone():
    module = nn.Linear(2, 2, device="meta")
    Kept(module).restore()
    assert module.weight.is_meta


def test_an_optimizer_of_the_module_comes_back():
    module = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module.__dict__["optimizer"] = optimizer
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[module.weight].items()}
    kept = Kept(module)
    optimizer.param_groups[0]["lr"] = 5.0
    optimizer.step()
    kept.restore()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(before[key], value) for key, value in optimizer.state[module.weight].items())


def test_random_generators_come_back():
    module = Holder()
    module.torch, module.python = torch.Generator().manual_seed(1), random.Random(1)
    module.numpy, module.loader = numpy.random.default_rng(1), DataLoader([1, 2], generator=torch.Generator())
    given = DataLoader([1, 2], shuffle=True, generator=torch.Generator().manual_seed(2))

    def draw():
        loader = module.loader.generator
        tensors = [torch.rand(1, generator=g).item() for g in (module.torch, loader, given.generator)]
        return [*tensors, module.python.random(), module.numpy.random()]

    kept = Kept(module, loaders=[given])
    first = draw()
    kept.restore()
    assert draw() == first


def test_of_a_datamodule_attributes_and_hyperparameters_come_back():
    class Data(LightningDataModule):
        def __init__(self, size=1):
            super().__init__()
            self.save_hyperparameters()
            self.generator = torch.Generator().manual_seed(1)

    data = Data()
    kept = Kept(nn.Linear(1, 1), data)
    drawn = torch.rand(1, generator=data.generator)
    data.hparams.size, data.made = 5, [1]
    kept.restore()
    assert data.hparams == {"size": 1}
    assert not hasattr(data, "made")
    assert torch.equal(torch.rand(1, generator=data.generator), drawn)


def test_a_loader_that_keeps_its_position_gets_it_back():
    class Stream:
        def __init__(self):
            self.position = 3

        def __iter__(self):
            return iter(())

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state):
            self.position = state["position"]

    stream = Stream()
    kept = Kept(nn.Linear(1, 1), loaders=[stream])
    stream.position = 9
    kept.restore()
    assert stream.position == 3
