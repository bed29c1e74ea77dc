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
    assert net.freeze() is net
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert net.unfreeze() is net
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


# ---------------------------------------------------------------------------------------------------- attributes

ALONE = {
    "example_input_array": None,
    "automatic_optimization": True,
    "strict_loading": True,
    "current_epoch": 0,
    "global_step": 0,
    "global_rank": 0,
    "local_rank": 0,
    "on_gpu": False,
    "device": torch.device("cpu"),
    "dtype": torch.get_default_dtype(),
    "logger": None,
    "loggers": [],
    "fabric": None,
    "device_mesh": None,
    "hparams": {},
    "hparams_initial": {},
}


@pytest.mark.parametrize("name", ALONE)
def test_a_module_without_a_trainer(name: str) -> None:
    assert getattr(Net(), name) == ALONE[name]


def test_the_trainer_of_a_module_without_one() -> None:
    with pytest.raises(RuntimeError, match="`Net` is not attached to a `Trainer`"):
        Net().trainer  # noqa: B018


def test_what_can_be_set() -> None:
    net = Net()
    net.automatic_optimization, net.example_input_array = False, torch.ones(1, 2)
    assert net.automatic_optimization is False
    assert net.example_input_array is not None
    for value, meant in ((False, False), (True, True), (None, True)):
        net.strict_loading = value
        assert net.strict_loading is meant


def test_device_and_type_are_those_of_the_last_move() -> None:
    net = Net()
    net.child = Net()
    for move, dtype in (
        (lambda: net.to(torch.float64), torch.float64),
        (lambda: net.half(), torch.float16),
        (lambda: net.float(), torch.float32),
        (lambda: net.double(), torch.float64),
        (lambda: net.type(torch.bfloat16), torch.bfloat16),
    ):
        move()
        assert net.dtype == net.child.dtype == net.layer.weight.dtype == dtype
    net.to("meta")
    assert net.device == net.child.device == torch.device("meta")
    for name in ("device", "dtype"):
        with pytest.raises(AttributeError, match=name):
            setattr(net, name, getattr(net, name))


def test_direct_children_get_the_trainer() -> None:
    net = Net()
    net.child, trainer = Net(), fulmen.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    net.trainer = trainer
    assert net.trainer is net.child.trainer is trainer
    net.trainer = None
    with pytest.raises(RuntimeError, match="not attached"):
        net.child.trainer  # noqa: B018


def test_children_get_the_fabric() -> None:
    net, fabric = Net(), fulmen.Fabric(accelerator="cpu")
    net.child = Net()
    net.fabric = fabric
    assert net.fabric == net.child.fabric
    assert net.fabric.world_size == 1
    net.fabric = None
    assert net.child.fabric is None
