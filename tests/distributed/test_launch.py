"""Starting processes for real: the script again, forked and spawned functions, torchrun."""

import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from fulmen import Trainer
from fulmen.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from fulmen.demos import BoringModel
from fulmen.errors import MisconfigurationException
from fulmen.fabric.launch import ProcessLauncher
from fulmen.fabric.launch.processes import _unshare
from fulmen.loggers import CSVLogger
from fulmen.strategies import DDPStrategy
from processes import RanksFailed, run_ranks

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
SHORT = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 2}

SCRIPT = """
import os, sys, time
import torch
from fulmen import LightningModule, Trainer
from fulmen.demos import BoringModel

SETTINGS = dict(accelerator="cpu", devices=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
                max_epochs=1, limit_train_batches=3, limit_val_batches=1, limit_test_batches=2,
                limit_predict_batches=1, enable_checkpointing=False)

def print(*words):  # in one piece, as both processes write to the same pipe
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"], sync_dist=True)
        return output

    def test_step(self, batch, batch_idx):
        self.log("rank_mean", float(self.trainer.global_rank), sync_dist=True)

if __name__ == "__main__":
"""


def start(tmp_path, body, *arguments, command=(sys.executable,), variables=None, **settings):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT + "\n".join("    " + line for line in body.splitlines()))
    unset = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "OMP_NUM_THREADS", "NODE_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        [*command, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment | (variables or {}),
        start_new_session=True,
        **settings,
    )


def end(process, seconds=100):
    """Exit code, output and errors; afterwards nothing is left of all that it started."""
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        left = members_of(process.pid)
        if left:
            time.sleep(5)  # those whose launcher was killed see it by themselves
            left = members_of(process.pid)
            for number in left:
                os.kill(number, signal.SIGKILL)
    assert left == []
    return process.returncode, output, errors


def members_of(session):
    """Processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_a_script_fits_tests_and_predicts(tmp_path):
    body = """
model, trainer = Model(), Trainer(**SETTINGS)
trainer.fit(model)
print("fit", trainer.global_rank, trainer.global_step, os.environ["OMP_NUM_THREADS"])
print("test", trainer.global_rank, trainer.test(model, verbose=False))
print("predict", trainer.global_rank, len(trainer.predict(model)))
other = Trainer(**SETTINGS | {"devices": "2"})
other.fit(Model())
print("again", other.global_rank, other.global_step, sys.argv[1:])
print("alone", Trainer(**SETTINGS | {"devices": 1}).test(Model(), verbose=False))
"""
    code, output, errors = end(start(tmp_path, body, "--data", "here", command=(sys.executable, "-X", "utf8")))
    assert code == 0, errors
    lines = sorted(line for line in output.splitlines() if line.split()[0] != "alone")
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    expected = []
    for rank in (0, 1):
        expected += [f"again {rank} 3 ['--data', 'here']", f"fit {rank} 3 {threads}", f"predict {rank} 1"]
        expected += [f"test {rank} [{{'rank_mean': 0.5}}]"]
    assert lines == sorted(expected)
    assert output.count("alone [{'rank_mean': ") == 2


@pytest.mark.slow
def test_a_module_is_run_again_as_a_module(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    process = start(tmp_path, "pass")
    end(process)
    (package / "__main__.py").write_text(
        (tmp_path / "train.py").read_text()
        + "\n    from . import __name__ as name\n    Trainer(**SETTINGS).fit(Model())"
        "\n    print(name, sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pkg", "x"], capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["pkg ['x']"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if os.environ.get('LOCAL_RANK') == '1':\n    import missing_here\nTrainer(**SETTINGS).fit(Model())",
         "The process of local rank 1 ended with exit code 1 before all processes had met"),
        ("if os.environ.get('LOCAL_RANK') == '1':\n    sys.exit(0)\nTrainer(**SETTINGS).fit(Model())",
         "The process of local rank 1 ended with exit code 0 before all processes had met"),
        ("trainer = Trainer(**SETTINGS)\n"
         "trainer.strategy.launcher.launch(lambda: None)\n"
         "if trainer.local_rank == 0:\n    raise ValueError('rank 0 alone')\n"
         "trainer.fit(Model())",
         "ValueError: rank 0 alone"),
        ("trainer = Trainer(**SETTINGS)\ntrainer.fit(Model())\nif trainer.global_rank == 0:\n    sys.exit(0)\n"
         "trainer.strategy.barrier()",
         "Rank 0 of 2 has ended while others still wait for it"),
        ("trainer = Trainer(**SETTINGS)\ntrainer.fit(Model())\nif trainer.global_rank == 1:\n    sys.exit(3)",
         "The processes of local ranks 1, ... ended with exit codes [3]."),
    ],
    ids=["bad import", "left before", "raised before", "left early", "exit code"],
)  # fmt: skip
def test_failures_of_a_script(tmp_path, body, said):
    code, _, errors = end(start(tmp_path, body))
    assert code == (3 if "sys.exit(3)" in body else 1)
    assert errors.count(said) == 1, errors


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = {"MASTER_PORT": str(taken.getsockname()[1])}
        code, _, errors = end(start(tmp_path, "Trainer(**SETTINGS).fit(Model())", variables=variables))
    assert code == 1
    assert "EADDRINUSE" in errors or "already in use" in errors


@pytest.mark.slow
def test_the_launcher_is_killed(tmp_path):
    body = """
class Slow(Model):
    def on_train_batch_end(self, *_):
        print("a batch")
        time.sleep(0.2)
Trainer(**SETTINGS | {"limit_train_batches": 10_000, "max_epochs": -1}).fit(Slow())
"""
    process = start(tmp_path, body)
    assert process.stdout.readline() == "a batch\n"
    assert len(members_of(process.pid)) == 2
    process.kill()
    code, _, errors = end(process)
    assert code == -signal.SIGKILL
    assert "Rank 0 of 2 has died without a word" in errors


@pytest.mark.slow
def test_a_script_without_a_file(tmp_path):
    code = "from fulmen import Trainer\nfrom fulmen.demos import BoringModel\n" + (
        "Trainer(accelerator='cpu', devices=2, strategy='ddp', logger=False).fit(BoringModel())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "Put the code into a file, or type: strategy='ddp_fork'" in done.stderr


@pytest.mark.slow
def test_spawned_processes(tmp_path):
    body = """
torch.manual_seed(7)
model = Model()
trainer = Trainer(**SETTINGS | {"strategy": sys.argv[1], "enable_checkpointing": True})
before = {name: value.clone() for name, value in model.state_dict().items()}
trainer.fit(model)
print(trainer.lightning_module is model, trainer.global_step, trainer.state.status.value, *trainer.callback_metrics)
best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)["state_dict"]
print(all(torch.equal(value, best[name]) for name, value in model.state_dict().items()))
print(all(torch.equal(value, before[name]) for name, value in model.state_dict().items()))
print(trainer.test(ckpt_path="best", verbose=False), trainer.predict(model))
"""
    for strategy in ("ddp_spawn", "ddp_fork"):
        code, output, errors = end(start(tmp_path, body, strategy))
        assert code == 0, errors
        expected = ["True 0 finished loss", "True", "False", "[{'rank_mean': 0.5}] None"]
        assert output.splitlines() == expected


@pytest.mark.slow
def test_spawning_without_a_main_guard(tmp_path):
    (tmp_path / "bare.py").write_text(
        "from fulmen import Trainer\nfrom fulmen.demos import BoringModel\n"
        "Trainer(accelerator='cpu', devices=2, strategy='ddp_spawn', logger=False).fit(BoringModel())\n"
    )
    done = subprocess.run([sys.executable, "bare.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr


# What follows forks from a process that has imported everything


def fork(**settings):
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")] + ["LOCAL_RANK", "MASTER_PORT"]:
        del os.environ[name]
    return Trainer(**QUIET | SHORT | {"devices": 2, "strategy": "ddp_fork"} | settings)


class Logging(BoringModel):
    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.log("mean_of_ranks", float(self.trainer.global_rank), sync_dist=True)
        self.log("threads", float(torch.get_num_threads()))
        return output

    def test_step(self, batch, batch_idx):
        self.log("tested", 1.0, sync_dist=True)


def fit_in_forks():
    module, trainer = Logging(), fork(callbacks=ModelCheckpoint())
    before = copy.deepcopy(module.state_dict())
    trainer.fit(module)
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)["state_dict"]
    assert trainer.lightning_module is module
    assert trainer.state.fn == "fit"
    assert trainer.state.finished
    assert trainer.global_step == 0
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == {
        "mean_of_ranks": 0.5,
        "threads": 1,
    }
    assert all(torch.equal(value, best[name]) for name, value in module.state_dict().items())
    assert not torch.equal(before["layer.weight"], module.layer.weight)
    assert not module.layer.weight.is_shared()
    assert trainer.test(ckpt_path="best", verbose=False) == [{"tested": 1.0}]
    assert trainer.predict(module) is None
    with pytest.raises(MisconfigurationException, match="BasePredictionWriter"):
        trainer.predict(module, return_predictions=True)
    with pytest.raises(NotImplementedError, match="Make a new Trainer"):
        trainer.fit(module)
    fork_again = Trainer(**QUIET | SHORT, devices=2, strategy="ddp_fork", enable_checkpointing=False)
    fork_again.fit(module)


def test_forked_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_ranks(fit_in_forks, 1, backend=None)


class Raising(BoringModel):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1:
            raise ValueError("in a fork")
        return super().training_step(batch, batch_idx)


class Killed(BoringModel):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Leaving(BoringModel):
    def training_step(self, batch, batch_idx):
        sys.exit(0)


def fail_in_forks():
    with pytest.raises(ProcessRaisedException, match="ValueError: in a fork") as caught:
        fork(enable_checkpointing=False).fit(Raising())
    assert "Where the others stood:\n  rank 0: train, epoch 0, batch 0" in str(caught.value)


def test_what_a_fork_raises():
    run_ranks(fail_in_forks, 1, backend=None)


def die_in_forks():
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        fork(enable_checkpointing=False).fit(Killed())


def test_a_fork_dies():
    run_ranks(die_in_forks, 1, backend=None)


def leave_in_forks():
    with pytest.raises(SystemExit):
        fork(enable_checkpointing=False).fit(Leaving())


def test_forks_that_call_exit():
    run_ranks(leave_in_forks, 1, backend=None)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.filterwarnings("ignore:precision='16-mixed' is not for the CPU")
def test_a_trainer_is_pickled(tmp_path, precision):
    callbacks = [EMAWeightAveraging(), EarlyStopping("loss"), ModelCheckpoint()]
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn", "precision": precision}
    trainer = Trainer(
        logger=CSVLogger(tmp_path), callbacks=callbacks, profiler="simple", max_time="00:01:00:00", **settings
    )
    copied = pickle.loads(pickle.dumps(trainer))
    assert copied.world_size == 2
    assert copied.fit_loop.trainer is copied
    assert copied.strategy.launcher.strategy is copied.strategy
    assert [type(callback) for callback in copied.callbacks] == [type(callback) for callback in trainer.callbacks]


def test_what_has_been_used_is_pickled(tmp_path):
    module, callbacks = BoringModel(), [EMAWeightAveraging(), ModelCheckpoint(tmp_path)]
    Trainer(**QUIET | SHORT, callbacks=callbacks).fit(module)
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, callbacks=callbacks)
    copied, _ = pickle.loads(pickle.dumps((trainer, module)))
    assert copied.checkpoint_callback.best_model_path == callbacks[1].best_model_path


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.second = torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.view = self.first.bias.detach()[1:]
        self.total = torch.zeros(())


def test_a_module_gets_memory_of_its_own():
    module = Tied()
    module.share_memory()
    module.total.share_memory_()
    before = copy.deepcopy(module.state_dict())
    old = module.total.data_ptr()
    _unshare(module)
    assert not any(tensor.is_shared() for tensor in (*module.parameters(), module.total, module.view))
    assert module.total.data_ptr() != old
    assert module.second.weight is module.first.weight
    assert module.view.data_ptr() == module.first.bias[1:].data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_start_methods():
    assert ProcessLauncher(DDPStrategy(), "fork").is_interactive_compatible
    assert not ProcessLauncher(DDPStrategy(), "spawn").is_interactive_compatible
    with pytest.raises(ValueError, match="Type one of: "):
        ProcessLauncher(DDPStrategy(), "thread")


def launch_lambdas():
    fork(strategy="ddp_spawn").fit(type("Local", (BoringModel,), {})())


def test_what_cannot_be_pickled():
    with pytest.raises(RanksFailed, match="or type: strategy='ddp'"):
        run_ranks(launch_lambdas, 1, backend=None)


@pytest.mark.slow
def test_the_first_process_gets_sigterm(tmp_path):
    body = """
class Slow(Model):
    def on_train_batch_end(self, *_):
        print("a batch")
        time.sleep(0.2)
Trainer(**SETTINGS | {"limit_train_batches": 10_000, "max_epochs": -1}).fit(Slow())
"""
    process = start(tmp_path, body)
    assert process.stdout.readline() == "a batch\n"
    process.terminate()
    code, _, errors = end(process)
    assert code == 143
    assert "exit codes" not in errors
    assert "Traceback" not in errors
