"""`fulmen.strategies`, `fulmen.accelerators`, `fulmen.plugins`: the very objects, under the names users import."""

import importlib

import pytest

import fulmen.fabric


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("strategies", "SingleDeviceStrategy", "fabric.strategies.single"),
        ("strategies", "StrategyRegistry", "fabric.strategies.registry"),
        ("accelerators", "CUDAAccelerator", "fabric.accelerators"),
        ("accelerators.accelerator", "Accelerator", "fabric.accelerators"),
        ("accelerators.cpu", "get_cpu_stats", "fabric.accelerators.cpu"),
        ("accelerators.cuda", "get_nvidia_gpu_stats", "fabric.accelerators.cuda"),
        ("accelerators.mps", "get_device_stats", "fabric.accelerators.mps"),
        ("accelerators.xla", "XLAAccelerator", "fabric.accelerators.xla"),
        ("plugins", "MixedPrecision", "fabric.precision"),
        ("plugins", "TorchCheckpointIO", "checkpoint.store"),
        ("plugins", "LightningEnvironment", "fabric.environments"),
        ("fabric", "Fabric", "fabric.fabric"),
        ("fabric", "seed_everything", "fabric.seed"),
        ("fabric", "is_wrapped", "fabric.wrappers"),
    ],
)
def test_the_very_same_objects(module, name, home):
    public = importlib.import_module(f"fulmen.{module}")
    assert name in public.__all__
    assert getattr(public, name) is getattr(importlib.import_module(f"fulmen.{home}"), name)


def test_unknown_names_of_fabric():
    assert dir(fulmen.fabric) == ["Fabric", "is_wrapped", "seed_everything"]
    with pytest.raises(AttributeError, match=r"module 'fulmen.fabric' has no attribute 'Fabrik'"):
        fulmen.fabric.Fabrik  # noqa: B018
