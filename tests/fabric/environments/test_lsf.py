"""The environment of jsrun."""

import os
import socket

import pytest

from fulmen.fabric.environments import LSFEnvironment
from fulmen.fabric.errors import ClusterError

HOSTS = ["batch", "10.10.10.0", "10.10.10.1", "10.10.10.1", "10.10.10.2"]


@pytest.fixture
def rank_file(tmp_path, monkeypatch):
    path = tmp_path / "ranks"
    path.write_text("\n".join(HOSTS) + "\n")
    given = {
        "LSB_JOBID": "1234",
        "LSB_DJOB_RANKFILE": str(path),
        "JSM_NAMESPACE_SIZE": "4",
        "JSM_NAMESPACE_RANK": "2",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: "10.10.10.1")
    return path


@pytest.mark.usefixtures("rank_file")
def test_what_variables_and_file_say():
    environment = LSFEnvironment()
    assert environment.detect()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("10.10.10.0", 10234)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.10.10.0", "10234")
    assert (environment.world_size(), environment.global_rank()) == (4, 2)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)


@pytest.mark.usefixtures("rank_file")
@pytest.mark.parametrize(("host", "node_rank"), [("10.10.10.0", 0), ("10.10.10.1", 1), ("10.10.10.2", 2)])
def test_nodes_count_in_order_of_appearance(host, node_rank, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert LSFEnvironment().node_rank() == node_rank


@pytest.mark.usefixtures("rank_file")
@pytest.mark.parametrize(
    ("variables", "port"),
    [({"LSB_JOBID": "1000"}, 10000), ({"LSB_JOBID": "7"}, 10007), ({"MASTER_PORT": "4321"}, 4321)],
)
def test_the_port(variables, port, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert LSFEnvironment().main_port == port


@pytest.mark.usefixtures("rank_file")
@pytest.mark.parametrize(
    ("variable", "needed"),
    [
        ("LSB_JOBID", True),
        ("LSB_DJOB_RANKFILE", True),
        ("JSM_NAMESPACE_SIZE", True),
        ("JSM_NAMESPACE_LOCAL_RANK", True),
        ("JSM_NAMESPACE_RANK", False),
    ],
)
def test_detection(variable, needed, monkeypatch):
    monkeypatch.delenv(variable)
    assert LSFEnvironment.detect() is not needed


@pytest.mark.usefixtures("rank_file")
@pytest.mark.parametrize(
    ("variable", "ask"),
    [
        ("LSB_JOBID", lambda environment: LSFEnvironment()),
        ("LSB_DJOB_RANKFILE", lambda environment: LSFEnvironment()),
        ("JSM_NAMESPACE_SIZE", LSFEnvironment.world_size),
        ("JSM_NAMESPACE_RANK", LSFEnvironment.global_rank),
        ("JSM_NAMESPACE_LOCAL_RANK", LSFEnvironment.local_rank),
    ],
)
def test_without_a_variable(variable, ask, monkeypatch):
    environment = LSFEnvironment()
    monkeypatch.delenv(variable)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match=f"{variable} is missing. Start the script with (jsrun|bsub)"):
        ask(environment)


def test_a_host_that_is_not_in_the_file(rank_file, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(ClusterError, match=r"host is 'elsewhere'.*names only 10\.10\.10\.0, 10\.10\.10\.1, .*jsrun"):
        LSFEnvironment()


@pytest.mark.parametrize("content", ["", "batch\n"])
def test_a_file_without_hosts(rank_file, content):
    rank_file.write_text(content)
    with pytest.raises(ClusterError, match=r"names no host after its first line") as caught:
        LSFEnvironment()
    assert caught.value.subject == str(rank_file)


def test_a_file_that_is_not_there(rank_file):
    rank_file.unlink()
    with pytest.raises(FileNotFoundError):
        LSFEnvironment()
