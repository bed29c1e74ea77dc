"""Where ranks and addresses come from: the environment this process was started in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.fabric.environments.cluster_environment import ClusterEnvironment
from fulmen.fabric.environments.detection import find_environment
from fulmen.fabric.environments.lightning import LightningEnvironment, find_free_network_port
from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.fabric.environments.kubeflow import KubeflowEnvironment
    from fulmen.fabric.environments.lsf import LSFEnvironment
    from fulmen.fabric.environments.mpi import MPIEnvironment
    from fulmen.fabric.environments.slurm import SLURMEnvironment
    from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment
    from fulmen.fabric.environments.xla import XLAEnvironment

__all__ = [
    "ClusterEnvironment",
    "KubeflowEnvironment",
    "LSFEnvironment",
    "LightningEnvironment",
    "MPIEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "XLAEnvironment",
    "find_environment",
    "find_free_network_port",
]

__getattr__ = importing(
    __name__,
    {
        "KubeflowEnvironment": ".kubeflow",
        "LSFEnvironment": ".lsf",
        "MPIEnvironment": ".mpi",
        "SLURMEnvironment": ".slurm",
        "TorchElasticEnvironment": ".torchelastic",
        "XLAEnvironment": ".xla",
    },
)


def __dir__() -> list[str]:
    return __all__
