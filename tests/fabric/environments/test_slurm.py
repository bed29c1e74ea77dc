"""The environment of srun."""

import os
import shutil
import signal
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.errors import PossibleUserWarning
from fulmen.fabric.environments import SLURMEnvironment
from fulmen.fabric.errors import ClusterError


@pytest.fixture
def variables(monkeypatch):
    given = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
    ranks = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_JOB_ID": "123456"}
    for name, value in (given | ranks | {"SLURM_NODELIST": "node[3-4]"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("variables")
def test_what_variables_say():
    environment = SLURMEnvironment()
    assert environment.detect()
    assert environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (8, 5)
    assert (environment.local_rank(), environment.node_rank()) == (1, 2)
    assert (environment.main_address, environment.main_port) == ("node3", 18456)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node3", "18456")
    assert (environment.job_name(), environment.job_id()) == ("train", 123456)


def test_the_requeue_signal():
    environment = SLURMEnvironment()
    assert (environment.auto_requeue, environment.requeue_signal) == (True, signal.SIGUSR1)
    environment = SLURMEnvironment(auto_requeue=False, requeue_signal=signal.SIGHUP)
    assert (environment.auto_requeue, environment.requeue_signal) == (False, signal.SIGHUP)


@pytest.mark.parametrize(
    ("variables", "detected", "name", "number"),
    [
        ({}, False, None, None),
        ({"SLURM_JOB_ID": "12"}, False, None, 12),
        ({"SLURM_NTASKS": "1"}, True, None, None),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "12"}, True, "train", 12),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash", "SLURM_JOB_ID": "12"}, False, "bash", None),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive", "SLURM_JOB_ID": "12"}, False, "interactive", None),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "none"}, True, None, None),
    ],
)
def test_detection_and_job(variables, detected, name, number, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert SLURMEnvironment.detect() is detected
    assert SLURMEnvironment.job_name() == name
    assert SLURMEnvironment.job_id() == number


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "127.0.0.1"),
        ({"SLURM_NODELIST": ""}, "127.0.0.1"),
        ({"SLURM_NODELIST": "a,b"}, "a"),
        ({"SLURM_JOB_NODELIST": "c[1-2]"}, "c1"),
        ({"SLURM_NODELIST": "a,b", "SLURM_JOB_NODELIST": "c[1-2]"}, "a"),
        ({"MASTER_ADDR": "given", "SLURM_NODELIST": "a,b"}, "given"),
    ],
)
def test_the_address(variables, address, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert SLURMEnvironment().main_address == os.environ["MASTER_ADDR"] == address


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({}, 12910),
        ({"SLURM_JOB_ID": "12"}, 15012),
        ({"SLURM_JOB_ID": "1000"}, 16000),
        ({"SLURM_JOB_ID": "123456"}, 18456),
        ({"SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "bash"}, 18456),
        ({"SLURM_JOB_ID": "123456", "MASTER_PORT": "77"}, 77),
    ],
)
def test_the_port(variables, port, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert SLURMEnvironment().main_port == int(os.environ["MASTER_PORT"]) == port


@pytest.mark.parametrize(
    ("variable", "value", "ask"),
    [
        ("SLURM_JOB_ID", "abc", lambda: SLURMEnvironment().main_port),
        ("MASTER_PORT", "abc", lambda: SLURMEnvironment().main_port),
        ("SLURM_NTASKS", "two", SLURMEnvironment),
        ("SLURM_NTASKS_PER_NODE", "2(x2)", lambda: SLURMEnvironment().validate_settings(2, 2)),
    ],
)
def test_what_is_no_number(variable, value, ask, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ClusterError, match=f"{variable}='.*' has to be a whole number") as caught:
        ask()
    assert caught.value.subject == variable


@pytest.mark.parametrize("method", ["world_size", "global_rank", "local_rank", "node_rank"])
def test_without_a_variable(method):
    with pytest.raises(ClusterError, match=r"SLURM_\w+ is missing. Start the script with srun"):
        getattr(SLURMEnvironment(), method)()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("", ""),
        ("host", "host"),
        ("10.0.0.1", "10.0.0.1"),
        ("a,b", "a"),
        ("a b", "a"),
        (" a, b", "a"),
        ("host[3]", "host3"),
        ("host[22,24-26]", "host22"),
        ("host[22-24,26]", "host22"),
        ("host[22-24]-ib", "host22-ib"),
        ("gpu-[001-004,010],cpu1", "gpu-001"),
        ("alpha,beta[1-2]", "alpha"),
        ("rack[1-2]n[03-04]", "rack1n03"),
        ("host-1-[2-3]", "host-1-2"),
        ("rack1-[a,b]", "rack1-a"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert SLURMEnvironment.resolve_root_node_address(nodes) == first


@given(
    prefix=st.from_regex(r"[a-z][a-z0-9]{0,4}-?", fullmatch=True),
    suffix=st.from_regex(r"(-[a-z]{1,4})?", fullmatch=True),
    ranges=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 99)), min_size=1, max_size=4),
    others=st.lists(st.from_regex(r"[a-z]{1,4}(\[[0-9]{1,2}-[0-9]{1,2}\])?", fullmatch=True), max_size=3),
    separator=st.sampled_from([",", " ", ", "]),
)
def test_the_first_host_of_any_list(prefix, suffix, ranges, others, separator):
    inside = ",".join(f"{start:03d}" + (f"-{start + more:03d}" if more else "") for start, more in ranges)
    nodes = separator.join([f"{prefix}[{inside}]{suffix}", *others])
    assert SLURMEnvironment.resolve_root_node_address(nodes) == f"{prefix}{ranges[0][0]:03d}{suffix}"


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("devices", "nodes", "message"),
    [
        (2, 2, r"devices=2 does not fit --ntasks-per-node=4 .*Type: devices=4, .*#SBATCH --ntasks-per-node=2"),
        (4, 1, r"num_nodes=1 does not fit --nodes=2 .*Type: num_nodes=2, .*#SBATCH --nodes=1"),
    ],
)
def test_settings_that_do_not_fit(devices, nodes, message, monkeypatch):
    environment = SLURMEnvironment()
    environment.validate_settings(num_devices=4, num_nodes=2)
    with pytest.raises(ValueError, match=message):
        environment.validate_settings(num_devices=devices, num_nodes=nodes)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    environment.validate_settings(num_devices=devices, num_nodes=nodes)


def test_settings_without_variables_fit():
    SLURMEnvironment().validate_settings(num_devices=4, num_nodes=2)


def test_tasks_have_to_be_given_by_node(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(RuntimeError, match=r"--ntasks=4 .*type: #SBATCH --ntasks-per-node=4"):
        SLURMEnvironment()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    SLURMEnvironment()
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    SLURMEnvironment()


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "3"}, {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}])
def test_an_srun_that_was_not_used(variables, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(shutil, "which", lambda command: f"/bin/{command}" if command == "srun" else None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.1"])
    for ask in (SLURMEnvironment.detect, SLURMEnvironment):
        with pytest.warns(PossibleUserWarning, match="type: srun python train.py --lr 0.1"):
            ask()


def test_an_srun_that_was_used(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(shutil, "which", lambda command: f"/bin/{command}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SLURMEnvironment.detect()
        SLURMEnvironment()
