"""Files are upgraded for good; nothing of them is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.checkpoint.upgrade import find, main, upgrade
from fulmen.errors import CheckpointError


def save(path: Path, version: str = "1.4.0", **entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "global_step": 12, "pytorch-lightning_version": version, "state_dict": {}, **entries}, path)
    return path


def test_a_file_is_upgraded_and_a_copy_is_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", state_dict={"weight": torch.arange(3.0)})
    before = path.read_bytes()
    assert upgrade(path) == f"upgraded from 1.4.0 to 2.6.6; the old file is {tmp_path / 'a.bak'}"
    assert (tmp_path / "a.bak").read_bytes() == before
    content = torch.load(path, weights_only=True)
    assert content["legacy_pytorch-lightning_version"] == "1.4.0"
    assert content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 3
    assert torch.equal(content["state_dict"]["weight"], torch.arange(3.0))


def test_a_present_one_is_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", "2.6.0")
    before = path.read_bytes()
    assert upgrade(path) == "has the layout of 2.6.6 already"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_present_one_is_rewritten_to_put_its_tensors_on_the_cpu(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", "2.6.0", state_dict={"weight": torch.ones(2)})
    assert "upgraded" in upgrade(path, map_to_cpu=True)
    assert (tmp_path / "a.bak").exists()
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].device.type == "cpu"


def test_earlier_copies_are_not_overwritten(tmp_path: Path) -> None:
    for number, name in enumerate(("a.bak", "a.bak2", "a.bak3")):
        upgrade(save(tmp_path / "a.ckpt", epoch=number))
        assert torch.load(tmp_path / name, weights_only=True)["epoch"] == number


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.ckpt")
    before = path.read_bytes()

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            upgrade(path)
    assert path.read_bytes() == before


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError):
        upgrade(tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_folder_is_searched(tmp_path: Path) -> None:
    files = [save(tmp_path / name) for name in ("a.ckpt", "deep/er/b.ckpt", "c.pt")]
    (tmp_path / "folder.ckpt").mkdir()
    assert find(tmp_path) == files[:2]
    assert find(tmp_path, ".pt") == find(files[2]) == [files[2]]
    assert find(tmp_path / "missing") == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.ckpt")
    save(tmp_path / "b.ckpt", "2.6.6")
    main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "a.ckpt: upgraded from 1.4.0 to 2.6.6" in lines[0]
    assert "b.ckpt: has the layout of 2.6.6 already" in lines[1]


def test_one_that_fails_does_not_keep_others_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ckpt").write_text("no checkpoint")
    save(tmp_path / "b.ckpt")
    with pytest.raises(SystemExit, match=r"1 of 2 file\(s\) could not be upgraded"):
        main([str(tmp_path)])
    printed = capsys.readouterr()
    assert "a.ckpt: left as it is." in printed.err
    assert "b.ckpt: upgraded" in printed.out


def test_files_with_classes_need_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.ckpt", hyper_parameters={"path": tmp_path})
    with pytest.raises(SystemExit, match="--trust"):
        main([str(path)])
    main([str(path), "--trust"])
    assert "upgraded" in capsys.readouterr().out


def test_nothing_found_ends_with_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fulmen.utilities.upgrade_checkpoint", str(tmp_path), "--extension", ".pth"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "There is no checkpoint" in process.stderr
    assert "*.pth" in process.stderr
