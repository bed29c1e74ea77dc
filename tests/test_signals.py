"""Signals from outside, sent to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.signals import Signals

SCRIPT = """
import logging, signal, sys, time, warnings
import torch
from torch.utils.data import DataLoader
import fulmen

warnings.simplefilter("ignore")
torch.set_num_threads(1)
call, mode = sys.argv[1:]

def say(*words):
    print(*words, flush=True)

if mode == "own handler":
    signal.signal(signal.SIGTERM, lambda *_: say("own handler"))
if mode == "ignored":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Net(fulmen.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def wait(self, batch_idx):
        say("batch", batch_idx)
        time.sleep(0.4 if batch_idx == 1 and mode != "starving" else 0)
        if mode == "endless" and batch_idx == 1:
            while True: time.sleep(0.05)
        say("done", batch_idx)
    def training_step(self, batch, batch_idx):
        self.wait(batch_idx)
        return self.layer(batch).sum()
    def validation_step(self, batch, batch_idx):
        self.wait(batch_idx)
    def predict_step(self, batch, batch_idx):
        self.wait(batch_idx)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def on_exception(self, error):
        pass

class Telling(fulmen.Callback):
    def on_exception(self, trainer, module, error):
        say("told", type(error).__name__, trainer.global_step)
        if mode == "impatient":
            signal.raise_signal(signal.SIGINT)
            say("still here")
    def on_train_end(self, trainer, module):
        say("train end")

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        time.sleep(3 if index > 1 else 0)
        return torch.ones(2)

workers = 2 if mode in ("workers", "starving") else 0
data = DataLoader(Slow() if mode == "starving" else torch.ones(6, 2), num_workers=workers)
trainer = fulmen.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[Telling()])
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
say("ready")
try:
    getattr(trainer, call)(Net(), data)
except BaseException as error:
    say("raised", type(error).__name__, error.code)
    say("handlers back", before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
    raise
say("ended")
"""


class Child:
    """A process that trains; what it prints is read line by line."""

    def __init__(self, path: Path, call: str, mode: str) -> None:
        script = path / "train.py"
        script.write_text(SCRIPT)
        self.process = subprocess.Popen(
            [sys.executable, str(script), call, mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=path,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.lines: list[str] = []

    def wait_for(self, line: str) -> None:
        assert self.process.stdout is not None
        while line not in self.lines:
            printed = self.process.stdout.readline()
            assert printed, (self.lines, self.process.communicate()[1])
            self.lines.append(printed.strip())

    def end(self) -> int:
        out, self.errors = self.process.communicate(timeout=60)
        self.lines += out.splitlines()
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    children: list[Child] = []

    def start_child(call: str = "fit", mode: str = "") -> Child:
        children.append(Child(tmp_path, call, mode))
        return children[-1]

    yield start_child
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
            child.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("call", "steps"), [("fit", 2), ("validate", 0), ("predict", 0)])
@pytest.mark.parametrize(
    ("sent", "told", "raised"),
    [
        (signal.SIGINT, "KeyboardInterrupt", "SystemExit 1"),
        (signal.SIGTERM, "SIGTERMException", "SIGTERMException 143"),
    ],
)
def test_the_run_ends_after_the_batch(
    start: Any, call: str, steps: int, sent: signal.Signals, told: str, raised: str
) -> None:
    child = start(call)
    child.wait_for("batch 1")
    child.process.send_signal(sent)
    code = child.end()
    assert child.lines[1:] == [
        *("batch 0", "done 0", "batch 1", "done 1"),
        *(f"told {told} {steps}", f"raised {raised}", "handlers back True"),
    ]
    assert code == int(raised.split()[1])
    assert ("Press it again to leave at once" in child.errors) == (sent == signal.SIGINT)


@pytest.mark.slow
def test_the_second_ctrl_c_ends_it_at_once(start: Any) -> None:
    child = start(mode="endless")
    child.wait_for("batch 1")
    child.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.process.poll() is None
    child.process.send_signal(signal.SIGINT)
    assert child.end() == 1
    assert "done 1" not in child.lines
    assert child.lines[-3:] == ["told KeyboardInterrupt 1", "raised SystemExit 1", "handlers back True"]


@pytest.mark.slow
def test_ctrl_c_does_not_break_what_is_done_at_the_end(start: Any) -> None:
    child = start(mode="impatient")
    child.wait_for("batch 1")
    child.process.send_signal(signal.SIGINT)
    assert child.end() == 1
    assert child.lines[-4:-1] == ["told KeyboardInterrupt 2", "still here", "raised SystemExit 1"]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_as_well(start: Any) -> None:
    child = start(mode="workers")
    child.wait_for("batch 1")
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.end() == 1
    assert child.lines[-3:] == ["told KeyboardInterrupt 2", "raised SystemExit 1", "handlers back True"]
    assert child.errors.count("Press it again to leave at once") == 1


@pytest.mark.slow
def test_sigterm_that_ends_the_workers_first(start: Any) -> None:
    """A batch system tells all processes; the run may be waiting for a batch that will never come."""
    child = start(mode="starving")
    child.wait_for("done 1")
    time.sleep(0.2)
    os.killpg(child.process.pid, signal.SIGTERM)
    assert child.end() == 143
    assert child.lines[-2:] == ["raised SIGTERMException 143", "handlers back True"]


@pytest.mark.slow
def test_the_handler_of_the_user_is_called_as_well(start: Any) -> None:
    child = start(mode="own handler")
    child.wait_for("batch 1")
    child.process.send_signal(signal.SIGTERM)
    assert child.end() == 143
    assert "own handler" in child.lines
    assert child.lines[-3:] == ["told SIGTERMException 2", "raised SIGTERMException 143", "handlers back True"]


# ---------------------------------------------------------------------------------------------------- the handlers


def test_handlers_are_there_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signal.getsignal(signal.SIGTERM) == signals._on_sigterm
        signal.raise_signal(signal.SIGTERM)
        assert (signals.sigterm, signals.received, signals.sigint) == (True, True, False)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert not Signals().received


def test_a_handler_for_ctrl_c_of_the_user_stays() -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
        assert pressed == [signal.SIGINT]
        assert not signals.received
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_can_be_ended_as_ever() -> None:
    with Signals() as signals:
        for sent, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 3)):
            child = os.fork()
            if not child:
                os.kill(os.getpid(), sent)
                time.sleep(0.01)
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert not signals.received


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def run() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
