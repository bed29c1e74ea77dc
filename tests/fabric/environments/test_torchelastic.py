"""The environment of torchrun."""

import os

import pytest

from fulmen.errors import MisconfigurationException
from fulmen.fabric.environments import TorchElasticEnvironment
from fulmen.fabric.errors import ClusterError


@pytest.fixture
def variables(monkeypatch):
    given = {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "2",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "1234",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("variables")
def test_what_variables_say(monkeypatch):
    environment = TorchElasticEnvironment()
    assert environment.detect()
    assert (environment.main_address, environment.main_port) == ("host", 1234)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 2)
    monkeypatch.delenv("GROUP_RANK")
    assert environment.node_rank() == 0


def test_without_address_and_port():
    environment = TorchElasticEnvironment()
    assert not environment.detect()
    with pytest.warns(UserWarning, match=r"MASTER_ADDR is not set; 127\.0\.0\.1 is used"):
        assert environment.main_address == "127.0.0.1"
    with pytest.warns(UserWarning, match="MASTER_PORT is not set; 12910 is used"):
        assert environment.main_port == 12910
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "12910")
    assert (environment.main_address, environment.main_port) == ("127.0.0.1", 12910)  # said once


@pytest.mark.parametrize(
    ("variable", "method"), [("WORLD_SIZE", "world_size"), ("RANK", "global_rank"), ("LOCAL_RANK", "local_rank")]
)
@pytest.mark.parametrize(("value", "state"), [(None, "missing"), ("", "empty")])
def test_without_a_variable(variable, method, value, state, monkeypatch):
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ClusterError, match=f"{variable} is {state}. Start the script with torchrun") as caught:
        getattr(TorchElasticEnvironment(), method)()
    assert caught.value.subject == variable
    assert isinstance(caught.value, (MisconfigurationException, ValueError))


@pytest.mark.usefixtures("variables")
def test_devices_and_nodes_make_the_processes():
    environment = TorchElasticEnvironment()
    environment.validate_settings(num_devices=2, num_nodes=2)
    with pytest.raises(ValueError, match=r"devices=3 and num_nodes=2 make 6 processes.*WORLD_SIZE=4.*torchrun --nnode"):
        environment.validate_settings(num_devices=3, num_nodes=2)
