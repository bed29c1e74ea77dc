"""`fulmen demo`, in this process and as a process of its own."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fulmen
from fulmen import demo
from fulmen.__main__ import main


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working directory, and an environment in which no seed was set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # `seed_everything` sets it; this puts it back afterwards
    return tmp_path


class Tags(HTMLParser):
    """Reads a page; collects what it refers to, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.references, self.open, self.seen = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_report(path):
    """The page is whole, and needs nothing else."""
    text = path.read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == []
    assert tags.references == []
    assert {"svg", "table"} <= tags.seen
    for part in ("train_loss", "val_loss", "learning rate", "Checkpoints", "Configuration", "Versions", "Optimizer"):
        assert part in text


def epochs_validated(run):
    with open(run / "metrics.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row["val_loss"]]


def test_a_run_says_where_everything_is(in_folder, capsys):
    assert main(["demo", "--max-epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"Test accuracy (0\.\d+)", out).group(1)) > 0.9
    rows = dict(re.findall(r"^  (\S.*?)  +(\S+)$", out, re.MULTILINE))
    assert set(rows) == {"report", "metrics", "best checkpoint", "last checkpoint", "script"}
    assert all(Path(path).is_file() for path in rows.values())
    assert rows["report"] == "fulmen_runs/digits/version_0/report.html"
    assert_report(Path(rows["report"]))
    assert epochs_validated(Path(rows["metrics"]).parent) == [0, 1]


def test_a_new_run_leaves_earlier_ones_alone(in_folder, capsys):
    for _ in range(2):
        assert main(["demo", "--root", "runs", "--max-epochs", "1"]) == 0
    assert epochs_validated(Path("runs/version_0")) == epochs_validated(Path("runs/version_1")) == [0]


def test_a_complete_run_is_not_resumed(in_folder, capsys):
    main(["demo", "--root", "runs", "--max-epochs", "1"])
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    capsys.readouterr()
    assert main(["demo", "--root", "runs", "--resume"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_resume_without_a_checkpoint_begins_a_run(in_folder, capsys):
    assert main(["demo", "--root", "runs", "--resume", "--max-epochs", "1"]) == 0
    assert "There is no checkpoint in runs" in capsys.readouterr().out
    assert Path("runs/version_0/report.html").is_file()


def test_scikit_learn_is_named_when_it_is_missing(in_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo"]) == 1
    assert 'pip install "fulmen[demo]"' in capsys.readouterr().err
    assert list(in_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("argv0", "expected"),
    [
        (f"{os.sep}x{os.sep}__main__.py", " -m fulmen demo --resume"),
        (".venv/bin/fulmen", ".venv/bin/fulmen demo --resume"),
    ],
)
def test_the_command_can_be_typed_as_it_is_shown(monkeypatch, argv0, expected):
    monkeypatch.setattr(sys, "argv", [argv0])
    arguments = type("Arguments", (), {"root": demo.ROOT})
    assert demo.command(arguments, resume=True).endswith(expected)


def test_the_last_run_is_the_one_with_the_highest_number(tmp_path):
    assert demo.last_run(str(tmp_path)) is None
    for number in (2, 10):
        (tmp_path / f"version_{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"version_{number}" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "version_11").mkdir()
    assert demo.last_run(str(tmp_path)) == 10


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"fulmen {fulmen.__version__}"


# ---------------------------------------------------------------------------------------------------- processes


def process(root, *arguments):
    command = [sys.executable, "-m", "fulmen", "demo", "--root", str(root), "--max-epochs", "8", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fulmen.__file__).parents[1])}
    environment.pop("PL_GLOBAL_SEED", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=root, **pipes)


def until(run, text):
    """Reads what the process prints up to a line with `text`."""
    for line in run.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without {text!r}")


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT] * 3, [signal.SIGTERM], [signal.SIGKILL]])
def test_an_interrupted_run_goes_on(tmp_path, signals):
    with process(tmp_path) as run:
        until(run, "Epoch 1/")
        for number in signals:
            run.send_signal(number)
        said = run.stdout.read()
    if signals[0] == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == (143 if signals[0] == signal.SIGTERM else 1)
        assert "--resume" in said
        assert "Traceback" not in said
    with process(tmp_path, "--resume") as again:
        said = again.stdout.read()
    assert again.returncode == 0
    assert float(re.search(r"Test accuracy (0\.\d+)", said).group(1)) > 0.97
    epochs = epochs_validated(tmp_path / "version_0")
    assert epochs[-1] == 7
    if signals[0] != signal.SIGKILL:  # which leaves no time to save: the epoch is repeated
        assert epochs == list(range(8))
    assert not (tmp_path / "version_1").exists()
    assert_report(tmp_path / "version_0" / "report.html")
