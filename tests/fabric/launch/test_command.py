"""The command line that runs a program again."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from fulmen.fabric.launch.command import command_of


@pytest.fixture
def main(monkeypatch):
    """A program in the place of pytest."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["as typed", "--lr", "0.1"])
    return module


def program(command):
    command, directory = command
    assert command[0] == sys.executable
    assert directory is None
    return command[1 + len(subprocess._args_from_interpreter_flags()) :]


def test_a_script(main, tmp_path, monkeypatch):
    (tmp_path / "train.py").touch()
    main.__file__ = str(tmp_path / "train.py")
    assert program(command_of(1)) == [main.__file__, "--lr", "0.1"]
    main.__file__ = "train.py"
    monkeypatch.chdir(tmp_path)
    assert program(command_of(1))[0] == str(tmp_path / "train.py")


@pytest.mark.parametrize(("name", "typed"), [("pkg.train", "pkg.train"), ("pkg.__main__", "pkg")])
def test_a_module(main, name, typed):
    main.__spec__ = ModuleSpec(name, None)
    assert program(command_of(1)) == ["-m", typed, "--lr", "0.1"]


def test_a_folder(main, tmp_path):
    main.__spec__ = ModuleSpec("__main__", None)
    main.__file__ = str(tmp_path / "__main__.py")
    assert program(command_of(1)) == [str(tmp_path), "--lr", "0.1"]


@pytest.mark.parametrize("file", [None, "<stdin>"])
def test_no_program(main, file):
    if file is not None:
        main.__file__ = file
    with pytest.raises(RuntimeError, match="type: strategy='ddp_fork'"):
        command_of(1)


SCRIPT = """
import os
import hydra
from fulmen import Trainer
from fulmen.demos import BoringModel

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(config):
    trainer = Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False, max_epochs=1,
                      enable_progress_bar=False, enable_model_summary=False, limit_train_batches=2,
                      limit_val_batches=0)
    trainer.fit(BoringModel())
    from hydra.core.hydra_config import HydraConfig
    found = HydraConfig.get()
    print(f"{trainer.global_rank} {config.x} {found.job.name} {found.runtime.output_dir} {os.getcwd()}\\n", end="")

main()
"""


@pytest.mark.slow
def test_under_hydra(tmp_path):
    pytest.importorskip("hydra", reason="needs hydra-core")
    (tmp_path / "train.py").write_text(SCRIPT)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "train.py", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        return sorted(line.split() for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 "))

    first, second = run("+x=1", "hydra.job.chdir=True")
    assert first[:3] == ["0", "1", "train"]
    assert second[:3] == ["1", "1", "train_1"]
    assert first[3:] == second[3:]
    assert first[3] == first[4]
    jobs = run("-m", "+x=3,4")
    assert [job[:3] for job in jobs] == [
        ["0", "3", "train"],
        ["0", "4", "train"],
        ["1", "3", "train_1"],
        ["1", "4", "train_1"],
    ]
    assert jobs[0][3] == jobs[2][3] != jobs[1][3] == jobs[3][3]
    assert len(list(tmp_path.rglob(".hydra"))) == 3  # one process writes down what the job is
