"""The environment of a PyTorchJob of Kubeflow."""

import pytest

from fulmen.fabric.environments import KubeflowEnvironment
from fulmen.fabric.errors import ClusterError


def test_what_variables_say(monkeypatch):
    for name, value in {"MASTER_ADDR": "host", "MASTER_PORT": "500", "WORLD_SIZE": "20", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    environment = KubeflowEnvironment()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("host", 500)
    assert (environment.world_size(), environment.global_rank()) == (20, 1)
    assert (environment.local_rank(), environment.node_rank()) == (0, 1)


def test_it_has_to_be_given():
    with pytest.raises(NotImplementedError, match=r"plugins=\[KubeflowEnvironment\(\)\]"):
        KubeflowEnvironment.detect()


@pytest.mark.parametrize(
    ("ask", "variable"),
    [
        (lambda environment: environment.main_address, "MASTER_ADDR"),
        (lambda environment: environment.main_port, "MASTER_PORT"),
        (KubeflowEnvironment.world_size, "WORLD_SIZE"),
        (KubeflowEnvironment.global_rank, "RANK"),
        (KubeflowEnvironment.node_rank, "RANK"),
    ],
)
def test_without_a_variable(ask, variable):
    with pytest.raises(ClusterError, match=f"{variable} is missing. Start the script with a PyTorchJob"):
        ask(KubeflowEnvironment())
