"""What every strategy does, and what a loop may pass by."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fulmen import Fabric
from fulmen.errors import MisconfigurationException
from fulmen.fabric.precision import DoublePrecision, MixedPrecision, Precision
from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
    overrides,
    plain,
)

HOOKS = (
    "training_step", "validation_step", "test_step", "predict_step", "pre_backward", "backward", "post_backward",
    "optimizer_step", "on_train_start", "on_train_end", "on_validation_start", "on_validation_end", "on_test_start",
    "on_test_end", "on_predict_start", "on_predict_end", "on_train_batch_start", "on_exception", "batch_to_device",
)  # fmt: skip


class Disk:
    """A checkpoint IO that keeps everything in a dict."""

    def __init__(self):
        self.files = {}

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.files[path] = (checkpoint, storage_options)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return self.files[path][0] | {"weights_only": weights_only}

    def remove_checkpoint(self, path):
        del self.files[path]


@pytest.mark.parametrize("name", HOOKS)
def test_a_strategy_overrides_nothing_until_it_does(name):
    assert not overrides(SingleDeviceStrategy(), name)
    kind = type("Mine", (SingleDeviceStrategy,), {name: lambda self, *args: None})
    assert overrides(kind(), name)
    on_the_instance = SingleDeviceStrategy()
    setattr(on_the_instance, name, lambda *args: None)
    assert overrides(on_the_instance, name)


def test_a_plain_override_may_be_passed_by():
    class Mine(SingleDeviceStrategy):
        @plain
        def on_train_start(self):
            """Nothing of its own."""

    assert not overrides(Mine(), "on_train_start")


@pytest.mark.parametrize("name", ["training_step", "validation_step", "test_step", "predict_step"])
def test_super_does_the_bound_work_of_a_step(name):
    def around(self, *args):
        return ["before", getattr(SingleDeviceStrategy, name)(self, *args), "after"]

    strategy = type("Mine", (SingleDeviceStrategy,), {name: around})()
    with pytest.raises(RuntimeError, match=f"Mine.{name}"):
        getattr(strategy, name)(1)
    strategy.bind(name, lambda *args: args)
    assert getattr(strategy, name)(1, 2) == ["before", (1, 2), "after"]


def test_backward_is_the_bound_work_or_the_plain_one():
    calls = []

    class Mine(SingleDeviceStrategy):
        def pre_backward(self, closure_loss):
            calls.append("pre")

        def post_backward(self, closure_loss):
            calls.append("post")

    strategy = Mine(precision_plugin=MixedPrecision("16-mixed", "cpu"))
    weight = torch.ones((), requires_grad=True)
    strategy.backward(weight * 3, None, retain_graph=True)
    assert weight.grad.item() == 3 * 2**16
    assert calls == ["pre", "post"]
    strategy.bind("backward", lambda loss, optimizer, *args, **kwargs: (loss, optimizer, args, kwargs))
    assert strategy.backward(1, 2, 3, create_graph=True) == (1, 2, (3,), {"create_graph": True})


def test_optimizer_step_is_the_bound_work_or_that_of_the_precision():
    strategy = SingleDeviceStrategy()
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], 0.5)
    weight.grad = torch.ones(())
    assert strategy.optimizer_step(optimizer) is None
    assert weight.item() == 0.5
    assert strategy.optimizer_step(optimizer, lambda: 7) == 7
    assert weight.item() == 0.0
    strategy.bind("optimizer_step", lambda optimizer, closure, model, **kwargs: (closure(), model, kwargs))
    assert strategy.optimizer_step(optimizer, lambda: 8, "model", extra=1) == (8, "model", {"extra": 1})


def test_batches_go_through_the_bound_transfer():
    strategy = SingleDeviceStrategy("meta")
    assert strategy.batch_to_device([torch.ones(1)])[0].device.type == "meta"
    assert strategy.batch_to_device(torch.ones(1), torch.device("cpu")).device.type == "cpu"
    strategy.bind("batch_to_device", lambda batch, device, dataloader_idx: (batch, device.type, dataloader_idx))
    assert strategy.batch_to_device(5, dataloader_idx=3) == (5, "meta", 3)


class Trainer:
    """As much of a trainer as a strategy sees."""

    def __init__(self, strategy, fn, optimizer_class=torch.optim.SGD):
        self.strategy, self.optimizer_class = strategy, optimizer_class
        self.state = SimpleNamespace(fn=fn)

    def _configure_optimizers(self):
        self.strategy.optimizers = (self.optimizer_class(self.strategy.lightning_module.parameters(), lr=0.1),)
        self.strategy.lr_scheduler_configs = ["config"]


def test_setup_converts_moves_and_configures():
    strategy = SingleDeviceStrategy(precision_plugin=DoublePrecision())
    model = nn.Linear(2, 1)
    strategy.connect(model)
    assert strategy.lightning_module is strategy.model is model
    strategy.setup(Trainer(strategy, "validate"))
    assert model.weight.dtype is torch.float64
    assert strategy.optimizers == []
    strategy.setup(Trainer(strategy, "fit"))
    assert [type(optimizer) for optimizer in strategy.optimizers] == [torch.optim.SGD]
    assert strategy.lr_scheduler_configs == ["config"]


def test_optimizers_that_cannot_work_are_refused_at_setup():
    strategy = SingleDeviceStrategy(precision_plugin=MixedPrecision("16-mixed", "cpu"))
    strategy.connect(nn.Linear(2, 1))
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        strategy.setup(Trainer(strategy, "fit", torch.optim.LBFGS))
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        strategy.setup_optimizer(torch.optim.LBFGS([nn.Parameter(torch.ones(1))]))


def test_accelerator_and_precision_are_set_up_and_torn_down():
    calls = []
    accelerator = SimpleNamespace(
        setup_device=lambda device: calls.append(f"device {device}"),
        setup=lambda trainer: calls.append("setup"),
        teardown=lambda: calls.append("accelerator down"),
    )

    class Loud(Precision):
        def convert_module(self, module):
            calls.append("convert")
            return module

        def teardown(self):
            calls.append("precision down")

    strategy = SingleDeviceStrategy(accelerator=accelerator, precision_plugin=Loud())
    strategy.setup_environment()
    strategy.connect(nn.Linear(1, 1))
    strategy.setup(Trainer(strategy, "test"))
    strategy.teardown()
    assert calls == ["device cpu", "setup", "convert", "precision down", "accelerator down"]


def test_checkpoints_go_through_the_io():
    disk = Disk()
    strategy = SingleDeviceStrategy(checkpoint_io=disk)
    assert strategy.checkpoint_io is disk
    strategy.save_checkpoint({"a": 1}, "here", storage_options="fast")
    assert disk.files == {"here": ({"a": 1}, "fast")}
    assert strategy.load_checkpoint("here", weights_only=True) == {"a": 1, "weights_only": True}
    strategy.remove_checkpoint("here")
    assert disk.files == {}


def test_only_the_process_that_writes_for_all_writes():
    class Second(SingleDeviceStrategy):
        is_global_zero = False

    disk = Disk()
    strategy = Second(checkpoint_io=disk)
    strategy.save_checkpoint({}, "here")
    strategy.remove_checkpoint("here")
    assert disk.files == {}


def test_the_default_io_writes_files(tmp_path):
    strategy = SingleDeviceStrategy()
    strategy.save_checkpoint({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    assert strategy.load_checkpoint(tmp_path / "x.ckpt")["a"].tolist() == [1.0, 1.0]
    strategy.remove_checkpoint(tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_states_of_modules_and_optimizers():
    strategy, other = SingleDeviceStrategy(), SingleDeviceStrategy()
    for each in (strategy, other):
        each.connect(nn.Linear(2, 1))
        each.setup(Trainer(each, "fit", torch.optim.Adam))
    strategy.lightning_module(torch.ones(1, 2)).sum().backward()
    strategy.optimizer_step(strategy.optimizers[0])
    checkpoint = {
        "state_dict": strategy.lightning_module_state_dict(),
        "optimizer_states": [strategy.optimizer_state(optimizer) for optimizer in strategy.optimizers],
    }
    other.load_model_state_dict(checkpoint)
    other.load_optimizer_state_dict(checkpoint)
    assert torch.equal(other.lightning_module.weight, strategy.lightning_module.weight)
    assert other.optimizers[0].state_dict()["state"][0]["step"].item() == 1

    checkpoint["state_dict"].pop("bias")
    with pytest.raises(RuntimeError, match="bias"):
        other.load_model_state_dict(checkpoint)
    other.load_model_state_dict(checkpoint, strict=False)
    with pytest.raises(ValueError, match="zip"):
        other.load_optimizer_state_dict({"optimizer_states": []})


def test_new_modules_get_device_and_precision():
    strategy = SingleDeviceStrategy("meta", precision_plugin=DoublePrecision())
    with strategy.module_init_context():
        weight = nn.Linear(2, 2).weight
    assert (weight.device.type, weight.dtype) == ("meta", torch.float64)
    with strategy.tensor_init_context():
        assert torch.ones(1).dtype is torch.float64
    assert torch.ones(1).device.type == "cpu"


def test_empty_init_leaves_new_parameters_alone():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 5.0))
            nn.init.normal_(self.weight)
            nn.init.kaiming_uniform_(self.weight.view(1, 3))
            nn.init.constant_(tensor=self.weight, val=2.0)

    strategy = SingleDeviceStrategy()
    with strategy.module_init_context(empty_init=True):
        assert Filled().weight.tolist() == [5.0] * 3
    with strategy.module_init_context(empty_init=False):
        assert Filled().weight.tolist() == [2.0] * 3


def test_a_strategy_has_a_device_and_collectives():
    with pytest.raises(TypeError, match="abstract"):
        Strategy()


# The names for a loop of the user's own


def test_fabric_calls_the_precision_by_another_name():
    precision = DoublePrecision()
    strategy = SingleDeviceStrategy(precision=precision)
    assert strategy.precision is strategy.precision_plugin is precision
    strategy.precision = None
    assert type(strategy.precision_plugin) is Precision


def test_module_and_optimizers_are_set_up_at_once():
    strategy = SingleDeviceStrategy(precision=DoublePrecision())
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters())
    made, optimizers, scheduler = strategy.setup_module_and_optimizers(module, [optimizer], "a scheduler")
    assert made is module
    assert made.weight.dtype == torch.float64
    assert (optimizers, scheduler) == ([optimizer], "a scheduler")
    strategy.module_to_device(module)
    assert module.weight.device == strategy.root_device
    scaled = SingleDeviceStrategy(precision=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")))
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        scaled.setup_module_and_optimizers(module, [torch.optim.LBFGS(module.parameters())])


def test_the_state_of_an_optimizer_in_its_wrapper_or_without():
    strategy = SingleDeviceStrategy()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.25)
    wrapped = Fabric(accelerator="cpu").setup_optimizers(optimizer)
    assert strategy.get_optimizer_state(wrapped) == strategy.get_optimizer_state(optimizer) == optimizer.state_dict()


def test_all_reduce_is_what_reduce_is():
    class Doubles(SingleDeviceStrategy):
        def reduce(self, tensor, group=None, reduce_op="mean"):
            return (tensor * 2, group, reduce_op)

    assert Doubles().all_reduce(3, "us", "sum") == (6, "us", "sum")


def test_a_class_registers_itself_under_its_names():
    registry = Registry("strategy")
    DDPStrategy.register_strategies(registry)
    DDPStrategy.register_strategies(registry)
    assert set(registry.names()) == {name for name in StrategyRegistry.names() if name.startswith("ddp")}
    assert registry.entry("ddp_spawn").init_params == {"start_method": "spawn"}
    assert type(registry.get("ddp")) is DDPStrategy
    type("Mine", (DDPStrategy,), {}).register_strategies(registry)
    assert all(registry.entry(name).target is DDPStrategy for name in registry.names())
