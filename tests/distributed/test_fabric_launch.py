"""How Fabric starts its processes, and how all end when one of them fails."""

import os
import subprocess
import sys

import pytest

from faults import note_waiting, run_faulty, wait_for_others
from fulmen import Fabric

SCRIPT = """
import sys
import torch
from fulmen import Fabric


class Run(Fabric):
    def run(self, number, scale=1):
        return self.all_reduce(number * scale, reduce_op="sum").item()


def work(fabric, first, second=0):
    model = fabric.setup(torch.nn.Linear(1, 1))
    total = fabric.all_reduce(first + second + fabric.global_rank, reduce_op="sum").item()
    return fabric.global_rank, total, type(model._forward_module).__name__


def fail(fabric):
    if fabric.global_rank == 1:
        raise ZeroDivisionError("of rank 1")
    fabric.barrier()


if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=2, strategy=sys.argv[1])
"""


def run_script(folder, strategy, body):
    script = folder / "train.py"
    script.write_text(SCRIPT + "".join(f"    {line}\n" for line in body.splitlines()))
    command = [sys.executable, str(script), strategy]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", "ddp_spawn"])
def test_a_function_is_launched(tmp_path, strategy):
    done = run_script(tmp_path, strategy, r'sys.stdout.write(f"{fabric.launch(work, 1, second=2)}\n")')
    assert done.returncode == 0, done.stderr
    ranks = (0, 1) if strategy == "ddp" else (0,)
    expected = [f"({rank}, 7, 'DistributedDataParallel')" for rank in ranks]
    assert sorted(done.stdout.splitlines()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", "ddp_spawn"])
def test_an_overridden_run_launches(tmp_path, strategy):
    done = run_script(
        tmp_path, strategy, "print(Run(accelerator='cpu', devices=2, strategy=sys.argv[1]).run(2, scale=3))"
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"12"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_a_function_that_fails_in_a_process_of_its_own(tmp_path, strategy):
    done = run_script(tmp_path, strategy, "fabric.launch(fail)")
    assert done.returncode == 1
    assert "ZeroDivisionError: of rank 1" in done.stderr
    assert "rank 0: in barrier" in done.stderr


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_of_their_own_run_a_function(strategy):
    run = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    with pytest.raises(TypeError, match=r"fabric\.launch\(function\)"):
        run.launch()
    with pytest.raises(RuntimeError, match=r"fabric\.launch\(function\), where"):
        run.barrier()


def test_devices_that_no_script_can_be_run_for():
    run = Fabric(accelerator="cpu", devices=2)
    with pytest.raises(RuntimeError, match=r"fabric\.launch\(\)"):
        run.barrier()


# Failures


def fails(fabric):
    if fabric.global_rank == 1:
        wait_for_others()
        raise ZeroDivisionError("of rank 1")
    note_waiting()
    fabric.barrier("never met")


def uncaught_in_the_script():
    fabric = Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    fails(fabric)


def uncaught_in_the_function():
    Fabric(accelerator="cpu", devices=2).launch(fails)


def uncaught_under_the_command_line():
    os.environ["LT_CLI_USED"] = "1"
    fails(Fabric(accelerator="cpu", devices=2))


@pytest.mark.parametrize("way", [uncaught_in_the_script, uncaught_in_the_function, uncaught_under_the_command_line])
def test_an_exception_of_one_process_ends_all_with_one_report(way):
    outcome = run_faulty(way, 2)
    assert outcome.codes == [1, 1]
    report, other = outcome.errors
    assert report.count("Rank 1 of 2 failed first: ZeroDivisionError: of rank 1") == 1
    assert "rank 0: in barrier 'never met'" in report
    assert "in fails" in report
    assert len(other.strip().splitlines()) == 1
    assert "ZeroDivisionError: of rank 1 (the report is on rank 0)" in other


def leaves_early(fabric):
    if fabric.global_rank == 0:
        fabric.barrier("never met")


def leave_early():
    Fabric(accelerator="cpu", devices=2).launch(leaves_early)


def test_a_process_that_leaves_early_ends_all():
    outcome = run_faulty(leave_early, 2)
    assert outcome.codes[0] == 1
    assert "Rank 1 of 2 has ended while others still wait for it" in outcome.errors[0]


def catches(fabric):
    if fabric.global_rank == 1:
        raise ZeroDivisionError("of rank 1")
    raise ValueError("of rank 0")


def go_on_after_a_failure():
    fabric = Fabric(accelerator="cpu", devices=2)
    try:
        fabric.launch(catches)
    except Exception as error:
        print(type(error).__name__)
    print(fabric.launch(lambda fabric: fabric.all_reduce(1, reduce_op="sum").item()))


def test_a_program_that_catches_on_all_goes_on():
    outcome = run_faulty(go_on_after_a_failure, 2)
    assert outcome.codes == [0, 0], outcome.errors
    assert [output.splitlines()[-1] for output in outcome.outputs] == ["2", "2"]
