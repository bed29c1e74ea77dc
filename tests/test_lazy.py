"""Names that are imported when they are asked for."""

import subprocess
import sys

import pytest

import fulmen.fabric.precision
from fulmen.lazy import importing


def test_names_are_found_at_home():
    find = importing("fulmen.fabric.precision", {"HalfPrecision": ".true", "Every": "fulmen.trigger"})
    assert find("HalfPrecision") is fulmen.fabric.precision.HalfPrecision
    assert find("Every") is fulmen.Every
    del fulmen.fabric.precision.Every
    with pytest.raises(AttributeError, match=r"module 'fulmen.fabric.precision' has no attribute 'Halff'"):
        find("Halff")


def test_what_nobody_asks_for_is_not_imported():
    code = """
import sys
from fulmen import Trainer
Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
for kind in ("precision.deepspeed", "environments.kubeflow", "strategies.ddp", "watch", "launch"):
    assert "fulmen.fabric." + kind not in sys.modules, kind
"""
    subprocess.run([sys.executable, "-c", code], check=True)
