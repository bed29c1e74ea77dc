"""Classes of Lightning in a pickle are found here, though it is not installed."""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fulmen
from fulmen.callbacks import EarlyStopping
from fulmen.checkpoint.hyperparameters import AttributeDict
from fulmen.checkpoint.store import read
from fulmen.checkpoint.unpickler import pl_legacy_patch
from fulmen.errors import CheckpointError
from fulmen.loggers import CSVLogger
from fulmen.utilities.combined_loader import CombinedLoader


@pytest.fixture
def pickled_as(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Saves an object as if its class were one of another module, which is gone afterwards."""

    def save(path: str, content: Any, name: str, base: type = object) -> Path:
        foreign = type(name, (base,), {"__module__": path})
        with monkeypatch.context() as context:
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                context.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
            setattr(sys.modules[path], name, foreign)
            torch.save(content(foreign), tmp_path / "file.pt")
        return tmp_path / "file.pt"

    return save


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pytorch_lightning.callbacks.early_stopping", EarlyStopping),
        ("lightning.pytorch.callbacks.early_stopping", EarlyStopping),
        ("pytorch_lightning.loggers.csv_logs", CSVLogger),
        ("lightning.pytorch.core.module", fulmen.LightningModule),
        ("lightning_fabric.fabric", fulmen.Fabric),
    ],
)
def test_classes_are_found_here(pickled_as: Any, path: str, expected: type) -> None:
    file = pickled_as(path, lambda foreign: {foreign: 1}, expected.__name__)
    assert read(file, weights_only=False) == {expected: 1}
    assert path.partition(".")[0] not in sys.modules


@pytest.mark.parametrize(
    "path",
    ["pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing", "lightning.fabric.utilities.data"],
)
def test_objects_keep_their_content(pickled_as: Any, path: str) -> None:
    file = pickled_as(path, lambda foreign: {"hparams": foreign(rate=0.1)}, "AttributeDict", dict)
    hparams = read(file, weights_only=False)["hparams"]
    assert type(hparams) is AttributeDict
    assert hparams.rate == 0.1


def test_a_weights_only_load_knows_no_classes(pickled_as: Any) -> None:
    file = pickled_as("pytorch_lightning.utilities.parsing", lambda foreign: foreign(a=1), "AttributeDict", dict)
    with pytest.raises(CheckpointError, match=r"objects of pytorch_lightning\.utilities\.parsing\.AttributeDict"):
        read(file, weights_only=True)


def test_what_is_not_here_either_is_said(pickled_as: Any) -> None:
    file = pickled_as("pytorch_lightning.callbacks.gpu_stats", lambda foreign: foreign, "GPUStats")
    with pytest.raises(CheckpointError, match="whose class is not there any more: No module named 'pytorch_lightning'"):
        read(file, weights_only=False)


def test_other_classes_are_found_where_they_are(tmp_path: Path) -> None:
    content = {"options": argparse.Namespace(a=1), "weight": torch.ones(2)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
        loaded = read(tmp_path / "file.pt", weights_only=False)
        assert loaded["options"] == argparse.Namespace(a=1)
        assert torch.equal(loaded["weight"], torch.ones(2))


def test_plain_pickles_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        read(tmp_path / "file.pt", weights_only=True)


# ---------------------------------------------------------------------------------------------------- any load


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pytorch_lightning.callbacks.early_stopping", EarlyStopping),
        ("lightning.pytorch.utilities.combined_loader", CombinedLoader),
        ("lightning_fabric.fabric", fulmen.Fabric),
        ("pytorch_lightning", fulmen.Trainer),
    ],
)
def test_the_patch_is_for_any_load(pickled_as: Any, path: str, expected: type) -> None:
    file = pickled_as(path, lambda foreign: {foreign: 1}, expected.__name__)
    before = set(sys.modules), list(sys.meta_path)
    with pl_legacy_patch() as patch:
        assert isinstance(patch, pl_legacy_patch)
        assert torch.load(file, weights_only=False) == {expected: 1}
        assert path in sys.modules
    assert path not in sys.modules
    assert list(sys.meta_path) == before[1]
    assert not {name for name in set(sys.modules) - before[0] if not name.startswith("fulmen")}
    with pytest.raises(ModuleNotFoundError):
        torch.load(file, weights_only=False)


def test_what_the_patch_has_not_is_said(pickled_as: Any) -> None:
    file = pickled_as("pytorch_lightning.callbacks.gpu_stats", lambda foreign: foreign, "GPUStats")
    with pl_legacy_patch(), pytest.raises(AttributeError, match="GPUStats"):
        torch.load(file, weights_only=False)
    with pl_legacy_patch(), pytest.raises(ModuleNotFoundError, match="not_lightning"):
        __import__("not_lightning.callbacks")


def test_the_patch_leaves_alone_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType("pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", real)
    with pl_legacy_patch():
        assert __import__("pytorch_lightning") is real
    assert sys.modules["pytorch_lightning"] is real


def test_the_default_of_old_hyperparameters(pickled_as: Any) -> None:
    file = pickled_as("pytorch_lightning.utilities.argparse_utils", lambda foreign: foreign, "_gpus_arg_default")
    assert read(file, weights_only=False)(3) == 3
    with pl_legacy_patch():
        assert torch.load(file, weights_only=False)("x") == "x"
