"""One machine, or several on which the user starts the processes."""

from __future__ import annotations

import os
import socket

from fulmen.fabric.environments.cluster_environment import ClusterEnvironment
from fulmen.fabric.environments.variables import number_in
from fulmen.ranks import rank_zero_only

__all__ = ["LightningEnvironment", "find_free_network_port"]


class LightningEnvironment(ClusterEnvironment):
    """The environment of one machine, or of several on which the user starts the processes.

    Reads MASTER_ADDR, MASTER_PORT, LOCAL_RANK and NODE_RANK (or GROUP_RANK); whoever sets LOCAL_RANK starts all
    processes. Global rank and number of processes are set by the strategy.
    """

    def __init__(self) -> None:
        self._main_port: int | None = None
        self._global_rank = 0
        self._world_size = 1

    @property
    def creates_processes_externally(self) -> bool:
        """Whether LOCAL_RANK is set."""
        return "LOCAL_RANK" in os.environ

    @property
    def main_address(self) -> str:
        """MASTER_ADDR, else this machine."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else a free port; stays the same from then on."""
        if self._main_port is None:
            given = os.environ.get("MASTER_PORT")  # a script may export it empty
            self._main_port = number_in("MASTER_PORT", "torchrun") if given else find_free_network_port()
        return self._main_port

    @staticmethod
    def detect() -> bool:
        """Always: this is what is left when nothing else was found."""
        return True

    def world_size(self) -> int:
        """What the strategy set."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """Set the number of processes."""
        self._world_size = size

    def global_rank(self) -> int:
        """What the strategy set."""
        return self._global_rank

    def set_global_rank(self, rank: int) -> None:
        """Set the rank of this process, also for `rank_zero_only`."""
        self._global_rank = rank
        rank_zero_only.rank = rank

    def local_rank(self) -> int:
        """LOCAL_RANK, else 0."""
        return number_in("LOCAL_RANK", "torchrun") if "LOCAL_RANK" in os.environ else 0

    def node_rank(self) -> int:
        """NODE_RANK, else GROUP_RANK, else 0."""
        for variable in ("NODE_RANK", "GROUP_RANK"):
            if variable in os.environ:
                return number_in(variable, "torchrun")
        return 0

    def teardown(self) -> None:
        """Remove WORLD_SIZE from the environment, which would mislead the next run of this process."""
        os.environ.pop("WORLD_SIZE", None)


def find_free_network_port() -> int:
    """A port of this machine that is free now; STANDALONE_PORT, where that is set.

    Raises:
        ClusterError: STANDALONE_PORT holds no whole number.
    """
    if "STANDALONE_PORT" in os.environ:
        return number_in("STANDALONE_PORT", "the test runner")
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
