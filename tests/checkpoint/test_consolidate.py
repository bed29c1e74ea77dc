"""One file made of a sharded checkpoint."""

import subprocess
import sys

import pytest
import torch

from fulmen.__main__ import main as fulmen
from fulmen.checkpoint.consolidate import consolidate, main
from fulmen.checkpoint.sharded import save_sharded, split
from fulmen.errors import CheckpointError
from nested import same

CHECKPOINT = {
    "epoch": 1,
    "global_step": 4,
    "pytorch-lightning_version": "2.6.6",
    "state_dict": {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)},
    "loops": {},
    "callbacks": {"Best": {"score": torch.tensor(0.5)}},
    "optimizer_states": [
        {
            "state": {1: {"exp_avg": torch.ones(2), "step": torch.tensor(2.0)}},
            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}],
        }
    ],
    "lr_schedulers": [{"last_epoch": 1}],
}


def named(checkpoint):
    """The checkpoint with an optimizer state as sharded strategies save it."""
    first = checkpoint["optimizer_states"][0]
    names = list(checkpoint["state_dict"])
    state = {names[number]: value for number, value in first["state"].items()}
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in first["param_groups"]]
    return checkpoint | {"optimizer_states": [{"state": state, "param_groups": groups}]}


@pytest.fixture
def folder(tmp_path):
    save_sharded(tmp_path / "a.ckpt", *split(named(CHECKPOINT)))
    return tmp_path / "a.ckpt"


def assert_same(path, expected=CHECKPOINT):
    assert same(torch.load(path, weights_only=True), expected)


def test_the_file_is_that_of_a_run_on_one_device(folder):
    path = consolidate(folder)
    assert path == f"{folder}.consolidated"
    assert_same(path)


def test_the_weights_alone(tmp_path):
    weights = {key: value for key, value in CHECKPOINT.items() if key in ("epoch", "pytorch-lightning_version")}
    save_sharded(tmp_path / "a", *split({**weights, "state_dict": {"weight": torch.ones(2)}}))
    assert "optimizer_states" not in torch.load(consolidate(tmp_path / "a"))


def test_a_run_without_weights_and_optimizers(tmp_path):
    save_sharded(tmp_path / "a", *split(CHECKPOINT | {"state_dict": {}, "optimizer_states": []}))
    found = torch.load(consolidate(tmp_path / "a"))
    assert (found["state_dict"], found["optimizer_states"]) == ({}, [])


def test_what_lightning_calls_the_model_is_the_state_dict(tmp_path):
    state, meta = split(named(CHECKPOINT))
    state["model"] = state.pop("state_dict")
    save_sharded(tmp_path / "a", state, meta)
    assert_same(consolidate(tmp_path / "a"))


def test_a_checkpoint_of_fabric_stays_as_it_is(tmp_path):
    save_sharded(tmp_path / "a", *split({"model": {"weight": torch.ones(2)}, "step": 3}))
    assert_same(consolidate(tmp_path / "a"), {"step": 3, "model": {"weight": torch.ones(2)}})


@pytest.mark.parametrize("command", [main, lambda arguments: fulmen(["consolidate", *arguments])])
def test_the_command_line(folder, tmp_path, capsys, command):
    assert not command([str(folder), "--output_file", str(tmp_path / "whole.ckpt")])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'whole.ckpt'}\n"
    assert_same(tmp_path / "whole.ckpt")


def test_the_command_fails_with_status_1(folder, tmp_path, capsys):
    existing = tmp_path / "existing"
    existing.write_text("not to be lost")
    for arguments, reason in (
        ([str(tmp_path / "nowhere")], "There is no checkpoint"),
        ([str(tmp_path)], r"no sharded checkpoint: there is no meta.pt and no .metadata"),
        ([str(folder), "--output_file", str(existing)], "There is something at"),
    ):
        assert fulmen(["consolidate", *arguments]) == 1
        assert reason in capsys.readouterr().err
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 1
    assert existing.read_text() == "not to be lost"


class Custom:
    pass


def test_objects_are_read_if_they_are_trusted(tmp_path, capsys):
    save_sharded(tmp_path / "a", {}, {"hparams": Custom()})
    with pytest.raises(CheckpointError, match="weights_only=False"):
        consolidate(tmp_path / "a")
    assert fulmen(["consolidate", str(tmp_path / "a"), "--trust"]) == 0
    assert isinstance(torch.load(tmp_path / "a.consolidated", weights_only=False)["hparams"], Custom)


@pytest.mark.parametrize("module", ["utilities", "fabric.utilities"])
def test_the_modules_of_that_name(folder, module):
    command = [sys.executable, "-m", f"fulmen.{module}.consolidate_checkpoint", str(folder)]
    assert subprocess.run(command, check=False, capture_output=True, text=True).returncode == 0
    assert_same(f"{folder}.consolidated")
