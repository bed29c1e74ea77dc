"""What every environment has."""

import logging

import pytest

from fulmen.fabric.environments import (
    ClusterEnvironment,
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from fulmen.ranks import rank_zero_only

MEMBERS = {
    "creates_processes_externally",
    "detect",
    "global_rank",
    "local_rank",
    "main_address",
    "main_port",
    "node_rank",
    "set_global_rank",
    "set_world_size",
    "world_size",
}


class OfOurCluster(LightningEnvironment):
    """A user's."""


def test_what_a_subclass_has_to_have():
    assert ClusterEnvironment.__abstractmethods__ == MEMBERS
    with pytest.raises(TypeError, match="abstract"):
        ClusterEnvironment()
    environment = OfOurCluster()
    environment.validate_settings(num_devices=1, num_nodes=1)
    environment.teardown()


@pytest.mark.parametrize("kind", [KubeflowEnvironment, SLURMEnvironment, TorchElasticEnvironment])
def test_clusters_know_their_sizes_and_ranks(kind, monkeypatch, caplog):
    for variable in ("WORLD_SIZE", "SLURM_NTASKS", "RANK", "SLURM_PROCID"):
        monkeypatch.setenv(variable, "1")
    environment, rank = kind(), rank_zero_only.rank
    with caplog.at_level(logging.DEBUG, logger="fulmen"):
        environment.set_world_size(7)
        environment.set_global_rank(5)
    assert (environment.world_size(), environment.global_rank(), rank_zero_only.rank) == (1, 1, rank)
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind.__name__}.set_world_size(7) is ignored: the cluster knows its size.",
        f"{kind.__name__}.set_global_rank(5) is ignored: the cluster knows the rank.",
    ]
    assert environment.creates_processes_externally
