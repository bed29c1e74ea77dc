"""Checkpoints of torch_xla, against a stand-in of the package."""

import sys
from types import ModuleType

import pytest
import torch

from fulmen.checkpoint.xla import XLACheckpointIO


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch_xla"):
        XLACheckpointIO()


def test_everything_is_computed_before_it_is_written(monkeypatch, tmp_path):
    marks = []
    package, core, model = ModuleType("torch_xla"), ModuleType("torch_xla.core"), ModuleType("torch_xla.core.xla_model")
    model.mark_step = lambda: marks.append((tmp_path / "x.ckpt").exists())
    for module in (package, core, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    io = XLACheckpointIO()
    io.save_checkpoint({"x": [torch.ones(2)], "n": 3}, tmp_path / "x.ckpt")
    assert marks == [False]
    loaded = io.load_checkpoint(tmp_path / "x.ckpt")
    assert (loaded["x"][0].tolist(), loaded["n"]) == ([1.0, 1.0], 3)
