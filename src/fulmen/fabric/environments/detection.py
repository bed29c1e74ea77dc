"""Which environment this process was started in."""

from __future__ import annotations

from fulmen.fabric.environments.cluster_environment import ClusterEnvironment
from fulmen.fabric.environments.lightning import LightningEnvironment
from fulmen.fabric.environments.lsf import LSFEnvironment
from fulmen.fabric.environments.mpi import MPIEnvironment
from fulmen.fabric.environments.slurm import SLURMEnvironment
from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment

__all__ = ["find_environment"]

# torchrun within a job of SLURM is torchrun's; MPI comes last, as finding it out starts it up
_DETECTABLE: tuple[type[ClusterEnvironment], ...] = (
    TorchElasticEnvironment,
    SLURMEnvironment,
    LSFEnvironment,
    MPIEnvironment,
)


def find_environment() -> ClusterEnvironment:
    """The first of torchrun, SLURM, LSF and MPI that started this process, else `LightningEnvironment`.

    Raises:
        ClusterError: What was found lacks a variable, or holds settings that cannot work.
    """
    return next((kind() for kind in _DETECTABLE if kind.detect()), LightningEnvironment())
