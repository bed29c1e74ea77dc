"""Which environment is found, and the order in which they are looked for."""

import socket

import pytest

from fulmen.fabric.environments import (
    LightningEnvironment,
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
    find_environment,
)
from fulmen.fabric.errors import ClusterError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "train"}
LSF = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "1"}


@pytest.fixture
def rank_file(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    path = tmp_path / "ranks"
    path.write_text("batch\nnode\n")
    return str(path)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, LightningEnvironment),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, LightningEnvironment),
        (TORCHRUN, TorchElasticEnvironment),
        (SLURM, SLURMEnvironment),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, LightningEnvironment),
        (LSF, LSFEnvironment),
        (SLURM | LSF, SLURMEnvironment),
        (TORCHRUN | SLURM | LSF, TorchElasticEnvironment),
    ],
)
def test_the_first_that_is_there(variables, found, monkeypatch, rank_file):
    for name, value in variables.items():
        monkeypatch.setenv(name, rank_file if name == "LSB_DJOB_RANKFILE" else value)
    assert type(find_environment()) is found


def test_a_cluster_that_cannot_work_is_told_at_once(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ClusterError, match="--ntasks-per-node=2"):
        find_environment()
