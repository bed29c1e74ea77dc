"""LightningModule by itself: what needs no run."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.errors import LightningDeprecationWarning


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sharded(Net):
    """Creates its layer in the hook that was called so before."""

    def __init__(self) -> None:
        fulmen.LightningModule.__init__(self)

    def configure_sharded_model(self) -> None:
        self.layer = torch.nn.Linear(2, 1)


class Both(Sharded):
    def configure_model(self) -> None: ...


def fit(module: fulmen.LightningModule) -> None:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(off, False))
    trainer.fit(module, DataLoader(torch.ones(1, 2)))


def test_freeze_and_unfreeze() -> None:
    net = Net()
    net.freeze()
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    net.unfreeze()
    assert net.layer.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_forward_is_for_the_user_to_define() -> None:
    with pytest.raises(NotImplementedError, match="forward"):
        Net()(torch.ones(1, 2))


def test_a_copy_has_no_trainer() -> None:
    net = Net()
    fit(net)
    assert net.trainer is not None
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other._trainer is None
        assert torch.equal(other.layer.weight, net.layer.weight)


def test_a_copy_of_a_module_compiled_in_place_is_not_compiled() -> None:
    net = Net()
    net.compile(backend="eager")
    assert copy.deepcopy(net)._compiled_call_impl is None


def test_the_former_name_of_configure_model() -> None:
    module = Sharded()
    with pytest.warns(LightningDeprecationWarning, match="Rename it: `configure_model`"):
        fit(module)
    assert module.layer.weight.grad is not None


def test_not_under_both_names() -> None:
    with pytest.raises(RuntimeError, match="`Both` overrides both `configure_model` and `configure_sharded_model`"):
        fit(Both())
