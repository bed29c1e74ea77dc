"""Processes started by mpirun."""

from __future__ import annotations

import socket
from functools import cached_property
from typing import Any

from fulmen.extras import available, need
from fulmen.fabric.environments.cluster_environment import ExternalEnvironment
from fulmen.fabric.environments.lightning import find_free_network_port

__all__ = ["MPIEnvironment"]


class MPIEnvironment(ExternalEnvironment):
    """The environment of `mpirun`; all sizes and ranks are those of MPI's COMM_WORLD.

    Address, port, and the local and node rank are exchanged between the processes when one of them is first asked
    for, so that all processes have to ask.

    Raises:
        ModuleNotFoundError: The package mpi4py is not installed.
    """

    def __init__(self) -> None:
        self._world: Any = need("mpi4py.MPI").COMM_WORLD

    @property
    def main_address(self) -> str:
        """Host name of rank 0."""
        return self._hosts[0]

    @cached_property
    def main_port(self) -> int:
        """A free port of rank 0."""
        return int(self._world.bcast(find_free_network_port() if self.global_rank() == 0 else None, root=0))

    @staticmethod
    def detect() -> bool:
        """Whether mpi4py is installed, and MPI runs several processes."""
        if not available("mpi4py"):
            return False
        try:
            world = need("mpi4py.MPI").COMM_WORLD
        except (ImportError, RuntimeError):  # mpi4py without an MPI
            return False
        return int(world.Get_size()) > 1

    def world_size(self) -> int:
        """Size of COMM_WORLD."""
        return int(self._world.Get_size())

    def global_rank(self) -> int:
        """Rank in COMM_WORLD."""
        return int(self._world.Get_rank())

    def local_rank(self) -> int:
        """The position of this process among those of its host."""
        rank = self.global_rank()
        return self._hosts[:rank].count(self._hosts[rank])

    def node_rank(self) -> int:
        """The position of this host among all, sorted by name."""
        return sorted(set(self._hosts)).index(self._hosts[self.global_rank()])

    @cached_property
    def _hosts(self) -> list[str]:
        """Host name of every rank."""
        return list(self._world.allgather(socket.gethostname()))
