"""Linear layers in fp8, against a stand-in of torchao; and with torchao itself where it is installed."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.errors import MisconfigurationException
from fulmen.fabric.plan import Machine, resolve
from fulmen.fabric.precision import Float8Precision

IS_THERE = importlib.util.find_spec("torchao") is not None


class Float8Linear(nn.Linear):
    pass


def convert(module, *, config, module_filter_fn):
    """What the package does, but for the eight bits."""
    module.given_config = config
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and module_filter_fn(layer, name):
            layer.__class__ = Float8Linear
    return module


@pytest.fixture
def torchao(monkeypatch):
    float8 = ModuleType("torchao.float8")
    float8.convert_to_float8_training = convert
    float8.Float8LinearConfig = SimpleNamespace(from_recipe_name=lambda name: SimpleNamespace(recipe=name))
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", float8)


def model():
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 3))


def in_fp8(module):
    return [name for name, layer in module.named_modules() if type(layer) is Float8Linear]


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "torchao.float8", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[fp8\]"'):
        resolve(precision="fp8", machine=Machine())


def test_a_device_that_cannot_is_refused_before_training(torchao):
    with pytest.raises(MisconfigurationException, match=r"multiplies in 8 bits .* this is cpu"):
        Trainer(accelerator="cpu", precision="fp8")


@pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_gpus(torchao, monkeypatch, capability, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    check = Float8Precision().check_device
    if works:
        check(torch.device("cuda", 0))
    else:
        with pytest.raises(RuntimeError, match="this is Card 1"):
            check(torch.device("cuda", 0))


def test_layers_of_fitting_sizes_are_converted(torchao):
    module = model()
    names = list(module.state_dict())
    assert Float8Precision().convert_module(module) is module
    assert in_fp8(module) == ["0", "2.0"]
    assert list(module.state_dict()) == names
    assert module.given_config is None


def test_the_filter_gets_layers_and_names(torchao):
    seen = {}

    def takes(layer, name):
        seen[name] = layer
        return name != "0"

    module = model()
    Float8Precision(filter=takes, config="rowwise").convert_module(module)
    assert seen == {"0": module[0], "2.0": module[2][0]}
    assert in_fp8(module) == ["2.0"]
    assert module.given_config.recipe == "rowwise"


def test_a_second_run_converts_nothing_again(torchao):
    module = Float8Precision().convert_module(nn.Sequential(nn.Linear(16, 16)))
    module.given_config = "untouched"
    assert Float8Precision(config="rowwise").convert_module(module).given_config == "untouched"


@pytest.mark.parametrize(
    ("module", "takes", "said"),
    [
        (nn.Linear(3, 4), None, "of 1 linear layers, 16 divides the sizes of 0"),
        (nn.Linear(16, 16), lambda *_: False, "of 1, and of those the filter takes none"),
    ],
)
def test_nothing_in_fp8_is_said(torchao, module, takes, said):
    with pytest.warns(UserWarning, match=said):
        Float8Precision(filter=takes).convert_module(module)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(32, 32), nn.Linear(32, 16)
        self.losses = []

    def training_step(self, batch, batch_idx):
        output = self.head(self.body(batch))
        assert output.dtype == torch.bfloat16
        loss = (output.float() - 1).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.slow
@pytest.mark.skipif(not IS_THERE, reason="needs torchao")
@pytest.mark.filterwarnings("ignore")
def test_training_with_torchao_itself():
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear as Real

    torch.manual_seed(0)
    plugin = Float8Precision(lambda layer, name: name != "head", Float8LinearConfig(emulate=True), "cpu")
    module = Net()
    names = list(module.state_dict())
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(max_epochs=3, accelerator="cpu", plugins=plugin, **dict.fromkeys(off, False))
    trainer.fit(module, DataLoader(torch.randn(64, 32), 16))
    assert type(module.body) is Real
    assert type(module.head) is nn.Linear
    assert list(module.state_dict()) == names
    assert module.body.weight.dtype == torch.float32
    assert module.losses[-1] < module.losses[0]
