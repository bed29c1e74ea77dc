"""Models from a registry. The service is the edge: a litmodels that writes a checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fulmen
from fulmen.demos import BoringModel
from fulmen.extras import available
from fulmen.utilities.model_registry import (
    download_model_from_registry,
    find_model_local_ckpt_path,
    is_registry_path,
)


@pytest.fixture
def trainer(tmp_path: Path) -> fulmen.Trainer:
    return fulmen.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        model_registry="space/default:v0",
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the models that are asked for."""
    asked: list[str] = []
    module = ModuleType("litmodels")

    def download_model(name: str, download_dir: str) -> None:
        asked.append(name)
        os.makedirs(download_dir)
        own = torch.load(tmp_path / "source.pt", weights_only=True)
        torch.save(own, Path(download_dir) / "weights.ckpt")

    module.download_model = download_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litmodels", module)
    return asked


@pytest.mark.parametrize(
    ("path", "name", "folder"),
    [
        ("registry", "space/default", "space_default"),
        ("registry:version:v2", "space/default:v2", "space_default_v2"),
        ("registry:a/b/c", "a/b/c", "a_b_c"),
        ("registry:a/b/c:version:v2", "a/b/c:v2", "a_b_c_v2"),
    ],
)
def test_paths(trainer: Any, downloads: list[str], tmp_path: Path, path: str, name: str, folder: str) -> None:
    assert is_registry_path(path)
    torch.save({}, tmp_path / "source.pt")
    with pytest.raises(FileNotFoundError, match=folder):
        find_model_local_ckpt_path(path, "space/default", tmp_path)
    download_model_from_registry(path, trainer)
    assert downloads == [name]
    found = find_model_local_ckpt_path(path, "space/default", tmp_path)
    assert found == str(tmp_path / folder / "weights.ckpt")


@pytest.mark.parametrize("path", ["some.ckpt", "registry/x.ckpt", "registry:a:v2", "registry:a:version:", None])
def test_other_paths(path: Any, tmp_path: Path) -> None:
    assert not is_registry_path(path)
    with pytest.raises(ValueError, match="is no path of a model registry"):
        find_model_local_ckpt_path(path, "default", tmp_path)


def test_a_model_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names no model.*Trainer\(model_registry="):
        find_model_local_ckpt_path("registry", None, tmp_path)


def test_the_newest_of_several_files(tmp_path: Path) -> None:
    for number, name in enumerate(("b.ckpt", "a.ckpt", "notes.txt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert find_model_local_ckpt_path("registry", tmp_path.name, tmp_path.parent) == str(tmp_path / "a.ckpt")


def test_a_run_takes_its_checkpoint_from_the_registry(trainer: Any, downloads: list[str], tmp_path: Path) -> None:
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "source.pt")
    model = BoringModel()
    trainer.validate(model, ckpt_path="registry:version:v1", verbose=False)
    assert downloads == ["space/default:v1"]
    saved = torch.load(tmp_path / "source.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"registry/x\.ckpt"):
        trainer.validate(model, ckpt_path="registry/x.ckpt")


@pytest.mark.skipif(available("litmodels"), reason="litmodels is here")
def test_without_litmodels(trainer: Any) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install litmodels"):
        download_model_from_registry("registry", trainer)
    with pytest.raises(FileNotFoundError, match="registry:x"):
        trainer.validate(BoringModel(), ckpt_path="registry:x")
