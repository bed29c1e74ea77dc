"""The helper for tests with several processes does what it says, also when things go wrong."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fulmen.fabric.environments import TorchElasticEnvironment
from fulmen.ranks import rank_zero_only
from processes import RanksFailed, run_ranks


def sum_of_ranks(scale):
    total = torch.tensor(float(dist.get_rank() * scale))
    dist.all_reduce(total)
    return total


def test_results_by_rank():
    assert [total.item() for total in run_ranks(sum_of_ranks, 2, 10)] == [10.0, 10.0]


def what_is_around():
    found = TorchElasticEnvironment()
    sizes = found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()
    return TorchElasticEnvironment.detect(), sizes, int(rank_zero_only.rank), os.environ["OF_THE_TEST"], os.getcwd()


def test_a_rank_is_as_if_started_by_torchrun_from_the_test(monkeypatch, tmp_path):
    monkeypatch.setenv("OF_THE_TEST", "here")
    monkeypatch.chdir(tmp_path)
    expected = [(True, (2, rank, rank, 0), rank, "here", str(tmp_path)) for rank in range(2)]
    assert run_ranks(what_is_around, 2, backend=None) == expected


def makes_its_own_group():
    assert not dist.is_initialized()
    dist.init_process_group("gloo")
    return dist.get_rank()


def test_without_a_group_one_can_be_made():
    assert run_ranks(makes_its_own_group, 2, backend=None) == [0, 1]


def raises_on_rank_one():
    print("before", flush=True)
    if dist.get_rank() == 1:
        raise ValueError("not here")
    dist.barrier()


def test_a_failure_is_told_with_traceback_and_who_waits_for_it():
    start = time.monotonic()
    with pytest.raises(RanksFailed, match="not here") as caught:
        run_ranks(raises_on_rank_one, 2)
    assert time.monotonic() - start < 30  # and not the timeout
    assert set(caught.value.reports) == {0, 1}
    assert 'raise ValueError("not here")' in caught.value.reports[1]
    assert "before" in caught.value.reports[1]
    assert caught.value.reports[0].startswith("It was still running.")
    assert "in raises_on_rank_one" in caught.value.reports[0]


def warns():
    warnings.warn("careful", UserWarning, stacklevel=1)


def test_a_warning_is_an_error_there_too():
    with pytest.raises(RanksFailed, match="UserWarning: careful"):
        run_ranks(warns, 1, backend=None)


def dies():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_a_rank_that_dies():
    with pytest.raises(RanksFailed, match="exit code -15"):
        run_ranks(dies, 1, backend=None)


def sleeps_with_a_child(directory):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(directory, os.environ["RANK"]).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def await_end(pids):
    for _ in range(200):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still running: {[pid for pid in pids if is_running(pid)]}")


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")


@needs_proc
def test_nobody_is_left_when_the_time_is_over(tmp_path):
    with pytest.raises(RanksFailed, match="still running") as caught:
        run_ranks(sleeps_with_a_child, 2, str(tmp_path), backend=None, timeout=2)
    assert "in sleeps_with_a_child" in caught.value.reports[0]
    await_end([int(pid) for file in tmp_path.iterdir() for pid in file.read_text().split()])


STARTS_RANKS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from processes import run_ranks
from test_processes import sleeps_with_a_child
if __name__ == "__main__":
    run_ranks(sleeps_with_a_child, 2, {directory!r}, backend=None)
"""


@pytest.mark.slow
@needs_proc
def test_nobody_is_left_when_the_test_is_killed(tmp_path):
    script, marks = tmp_path / "script.py", tmp_path / "marks"
    marks.mkdir()
    script.write_text(STARTS_RANKS.format(tests=str(Path(__file__).parent), directory=str(marks)))
    with subprocess.Popen([sys.executable, str(script)]) as running:
        while len(pids := [pid for file in marks.iterdir() for pid in file.read_text().split()]) < 4:
            assert running.poll() is None
            time.sleep(0.05)
        running.kill()
    await_end([int(pid) for pid in pids])


def test_functions_within_functions_are_refused():
    with pytest.raises(TypeError, match="top level"):
        run_ranks(lambda: None, 2)
