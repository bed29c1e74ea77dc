"""What is said to who asks for a TPU."""

import sys
from types import ModuleType

import pytest

from fulmen import Trainer
from fulmen.errors import MisconfigurationException
from fulmen.fabric import strategies

NAMES = ["xla", "xla_debug", "xla_fsdp", "single_xla", "single_tpu"]
CLASSES = ["SingleDeviceXLAStrategy", "XLAFSDPStrategy", "XLAStrategy"]


def make(name):
    return getattr(strategies, name)(*(["xla"] if name.startswith("Single") else []))


@pytest.mark.parametrize("name", NAMES)
def test_by_name(name):
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        Trainer(accelerator="cpu", strategy=name)


@pytest.mark.parametrize("name", CLASSES)
def test_by_class(name):
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        make(name)


@pytest.mark.parametrize("name", CLASSES)
def test_with_the_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch_xla", ModuleType("torch_xla"))
    with pytest.raises(MisconfigurationException, match=f"{name}: .* not part of this version"):
        make(name)
