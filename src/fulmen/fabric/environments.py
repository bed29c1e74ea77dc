"""Where ranks and addresses come from: the environment this process was started in."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod

from fulmen.ranks import rank_zero_only

__all__ = ["ClusterEnvironment", "LightningEnvironment"]


class ClusterEnvironment(ABC):
    """What a cluster says about its processes."""

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Whether the cluster starts all processes, so that none has to be started from here."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Address through which all processes meet."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """An open port of the main address."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Whether this process runs in such an environment."""

    @abstractmethod
    def world_size(self) -> int:
        """Number of processes on all nodes."""

    @abstractmethod
    def set_world_size(self, size: int) -> None:
        """Set the number of processes, where it is not the cluster that knows it."""

    @abstractmethod
    def global_rank(self) -> int:
        """Rank of this process among all."""

    @abstractmethod
    def set_global_rank(self, rank: int) -> None:
        """Set the rank of this process, where it is not the cluster that knows it."""

    @abstractmethod
    def local_rank(self) -> int:
        """Rank of this process on its node."""

    @abstractmethod
    def node_rank(self) -> int:
        """Rank of this node."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:  # noqa: B027 - optional to override
        """Hold the settings against what the cluster knows.

        Args:
            num_devices: Number of devices on each node.
            num_nodes: Number of nodes.

        Raises:
            ValueError: They do not fit.
        """

    def teardown(self) -> None:  # noqa: B027 - optional to override
        """Undo what was set up."""


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
        """STANDALONE_PORT or MASTER_PORT, else a free port, which stays the same from then on."""
        if self._main_port is None:
            given = os.environ.get("STANDALONE_PORT") or os.environ.get("MASTER_PORT")
            self._main_port = int(given) if given else _find_free_port()
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
        return int(os.environ.get("LOCAL_RANK", 0))

    def node_rank(self) -> int:
        """NODE_RANK, else GROUP_RANK, else 0."""
        return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))

    def teardown(self) -> None:
        """Remove WORLD_SIZE from the environment, which would mislead the next run of this process."""
        os.environ.pop("WORLD_SIZE", None)


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
