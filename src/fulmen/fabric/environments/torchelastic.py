"""Processes started by torchrun."""

from __future__ import annotations

import os

import torch

from fulmen.fabric.environments.cluster_environment import ExternalEnvironment
from fulmen.fabric.environments.variables import number_in
from fulmen.fabric.errors import ClusterError
from fulmen.ranks import rank_zero_warn

__all__ = ["TorchElasticEnvironment"]


class TorchElasticEnvironment(ExternalEnvironment):
    """The environment of `torchrun`: reads WORLD_SIZE, RANK, LOCAL_RANK, GROUP_RANK, MASTER_ADDR and MASTER_PORT."""

    @property
    def main_address(self) -> str:
        """MASTER_ADDR; if it is missing, this machine from then on, with a warning."""
        return _or_set("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """MASTER_PORT; if it is missing, 12910 from then on, with a warning."""
        _or_set("MASTER_PORT", "12910")
        return number_in("MASTER_PORT", "torchrun")

    @staticmethod
    def detect() -> bool:
        """Whether torchrun started this process."""
        return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()

    def world_size(self) -> int:
        """WORLD_SIZE."""
        return number_in("WORLD_SIZE", "torchrun")

    def global_rank(self) -> int:
        """RANK."""
        return number_in("RANK", "torchrun")

    def local_rank(self) -> int:
        """LOCAL_RANK."""
        return number_in("LOCAL_RANK", "torchrun")

    def node_rank(self) -> int:
        """GROUP_RANK, else 0."""
        return number_in("GROUP_RANK", "torchrun") if "GROUP_RANK" in os.environ else 0

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """See that there is a process for each device.

        Args:
            num_devices: Number of devices on each node.
            num_nodes: Number of nodes.

        Raises:
            ClusterError: `num_devices * num_nodes` is not the number of processes.
        """
        if num_devices * num_nodes != self.world_size():
            raise ClusterError(
                f"devices={num_devices} and num_nodes={num_nodes} make {num_devices * num_nodes} processes, and "
                f"torchrun started {self.world_size()} (WORLD_SIZE={self.world_size()}). Type: "
                f"torchrun --nnodes={num_nodes} --nproc-per-node={num_devices}, or change devices and num_nodes",
                subject=(num_devices, num_nodes),
            )


def _or_set(variable: str, value: str) -> str:
    if variable not in os.environ:
        rank_zero_warn(f"The environment variable {variable} is not set; {value} is used. torchrun sets it.")
        os.environ[variable] = value
    return os.environ[variable]
