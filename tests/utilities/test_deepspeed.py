"""Checkpoints in pieces. DeepSpeed itself is the edge: a module with the one function of it that is called."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fulmen.demos import BoringModel
from fulmen.extras import available
from fulmen.utilities.deepspeed import (
    CPU_DEVICE,
    convert_zero_checkpoint_to_fp32_state_dict,
    ds_checkpoint_dir,
    read_zero_checkpoint,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as DeepSpeed leaves it, of two ranks; what is of interest is in the file of the first."""
    folder = tmp_path / "pieces.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint\n")
    ours = {"epoch": 3, "global_step": 7, "hyper_parameters": {}, "pytorch-lightning_version": "2.6.6"}
    theirs = {"module": {"_forward_module.layer.weight": torch.zeros(0)}, "ds_version": "0.18", "param_shapes": []}
    for rank in range(2):
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        torch.save(ours | theirs | {"optimizer": None}, folder / "checkpoint" / name)
        (folder / "checkpoint" / name.replace("model", "optim")).touch()
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A DeepSpeed that puts known weights together; what it was asked for."""
    asked: list[Any] = []
    module = ModuleType("deepspeed.utils.zero_to_fp32")

    def put_together(checkpoint_dir: str, tag: str) -> dict[str, torch.Tensor]:
        asked.append((checkpoint_dir, tag))
        return {"_forward_module.layer.weight": torch.ones(2, 32), "_forward_module.layer.bias": torch.zeros(2)}

    module.get_fp32_state_dict_from_zero_checkpoint = put_together  # type: ignore[attr-defined]
    for name in ("deepspeed", "deepspeed.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_folder_of_the_pieces(checkpoint: Path) -> None:
    assert ds_checkpoint_dir(checkpoint) == str(checkpoint / "checkpoint")
    (checkpoint / "other").mkdir()
    assert ds_checkpoint_dir(str(checkpoint), tag="other") == str(checkpoint / "other")
    with pytest.raises(FileNotFoundError, match="the tag 'x' names"):
        ds_checkpoint_dir(checkpoint, "x")
    (checkpoint / "latest").unlink()
    with pytest.raises(ValueError, match=r"no file '.*latest'.*tag="):
        ds_checkpoint_dir(checkpoint)
    assert torch.device("cpu") == CPU_DEVICE


def test_the_pieces_become_a_checkpoint(checkpoint: Path, calls: list[Any], tmp_path: Path) -> None:
    written = convert_zero_checkpoint_to_fp32_state_dict(checkpoint, tmp_path / "whole.ckpt")
    assert calls == [(str(checkpoint), "checkpoint")]
    assert set(written) == {"epoch", "global_step", "hyper_parameters", "pytorch-lightning_version", "state_dict"}
    loaded = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert loaded["global_step"] == written["global_step"] == 7
    model = BoringModel.load_from_checkpoint(tmp_path / "whole.ckpt")
    assert torch.equal(model.layer.weight, torch.ones(2, 32))


def test_pieces_that_are_missing(checkpoint: Path, calls: list[Any], tmp_path: Path) -> None:
    for file in (checkpoint / "checkpoint").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="model_states"):
        convert_zero_checkpoint_to_fp32_state_dict(checkpoint, tmp_path / "whole.ckpt", tag="checkpoint")
    assert not (tmp_path / "whole.ckpt").exists()


@pytest.mark.skipif(available("deepspeed"), reason="deepspeed is here")
def test_it_needs_deepspeed(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[deepspeed\]"'):
        convert_zero_checkpoint_to_fp32_state_dict(checkpoint, tmp_path / "whole.ckpt")


def test_a_checkpoint_of_which_nothing_is_divided(checkpoint: Path, calls: list[Any]) -> None:
    for piece in (checkpoint / "checkpoint").glob("*_optim_states.pt"):
        piece.unlink()
    state = read_zero_checkpoint(checkpoint)
    assert calls == []
    assert list(state["state_dict"]) == ["layer.weight"]
    assert state["epoch"] == 3
