"""The environment of one machine."""

import os
import socket

import pytest

from fulmen.fabric.environments import LightningEnvironment, find_free_network_port
from fulmen.fabric.errors import ClusterError
from fulmen.ranks import rank_zero_only


def test_defaults():
    environment = LightningEnvironment()
    assert LightningEnvironment.detect()
    assert not environment.creates_processes_externally
    assert environment.main_address == "127.0.0.1"
    assert (environment.world_size(), environment.global_rank()) == (1, 0)
    assert (environment.local_rank(), environment.node_rank()) == (0, 0)
    environment.validate_settings(num_devices=1, num_nodes=1)


def test_the_port_is_free_and_stays():
    environment = LightningEnvironment()
    port = environment.main_port
    assert environment.main_port == port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_what_variables_say(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("GROUP_RANK", "3")
    environment = LightningEnvironment()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("10.0.0.1", 1234)
    assert (environment.local_rank(), environment.node_rank()) == (2, 3)
    monkeypatch.setenv("NODE_RANK", "1")
    assert environment.node_rank() == 1


def test_free_ports(monkeypatch):
    first, second = find_free_network_port(), find_free_network_port()
    assert 1024 < first < 65536
    assert 1024 < second < 65536
    monkeypatch.setenv("STANDALONE_PORT", "4321")
    assert find_free_network_port() == LightningEnvironment().main_port == 4321
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert LightningEnvironment().main_port == 1234
    monkeypatch.setenv("MASTER_PORT", "")
    assert LightningEnvironment().main_port == 4321


@pytest.mark.parametrize(
    ("variable", "ask"),
    [
        ("MASTER_PORT", lambda: LightningEnvironment().main_port),
        ("STANDALONE_PORT", find_free_network_port),
        ("LOCAL_RANK", lambda: LightningEnvironment().local_rank()),
        ("NODE_RANK", lambda: LightningEnvironment().node_rank()),
        ("GROUP_RANK", lambda: LightningEnvironment().node_rank()),
    ],
)
def test_what_is_no_number(variable, ask, monkeypatch):
    monkeypatch.setenv(variable, "one")
    with pytest.raises(ClusterError, match=f"{variable}='one' has to be a whole number. .*export {variable}=1"):
        ask()


def test_what_the_strategy_sets(monkeypatch):
    environment = LightningEnvironment()
    environment.set_world_size(4)
    environment.set_global_rank(2)
    assert (environment.world_size(), environment.global_rank(), rank_zero_only.rank) == (4, 2, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    environment.teardown()
    assert "WORLD_SIZE" not in os.environ
    environment.teardown()
