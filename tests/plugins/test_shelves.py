"""The plugins under all their names."""

import importlib

import pytest
import torch

from fulmen import plugins
from fulmen.fabric import plugins as fabric_plugins
from fulmen.fabric import precision


@pytest.mark.parametrize("shelf", ["plugins", "plugins.precision", "fabric.plugins", "fabric.plugins.precision"])
def test_every_precision_is_one_class(shelf):
    names = [name for name in precision.__all__ if name != "XLABf16Precision"]
    module = importlib.import_module(f"fulmen.{shelf}")
    assert all(getattr(module, name) is getattr(precision, name) for name in names)


def test_checkpoint_ios_are_one_class():
    assert fabric_plugins.TorchCheckpointIO is plugins.TorchCheckpointIO
    assert fabric_plugins.XLACheckpointIO is plugins.io.XLACheckpointIO
    assert fabric_plugins.io.CheckpointIO is plugins.io.CheckpointIO
    assert plugins.layer_sync.TorchSyncBatchNorm is plugins.TorchSyncBatchNorm


def test_former_names():
    assert plugins.DoublePrecisionPlugin().precision == "64-true"
    assert plugins.MixedPrecisionPlugin is plugins.MixedPrecision
    assert plugins.PrecisionPlugin is plugins.Precision
    assert plugins.precision.HalfPrecisionPlugin("bf16-true").precision == "bf16-true"
    assert fabric_plugins.TPUPrecision is plugins.TPUPrecisionPlugin is plugins.XLAPrecision
    assert fabric_plugins.TPUBf16Precision is plugins.XLABf16PrecisionPlugin
    sharded = plugins.FSDPMixedPrecisionPlugin("16-mixed", "cuda", torch.amp.GradScaler("cpu"))
    assert isinstance(sharded, plugins.FSDPPrecision)
    assert sharded.scaler is not None


@pytest.mark.parametrize("name", ["HPUCheckpointIO", "HPUPrecisionPlugin"])
def test_what_was_removed_says_so(name):
    with pytest.raises(NotImplementedError, match=f"`{name}` was removed"):
        getattr(plugins, name)("anything", more=True)
