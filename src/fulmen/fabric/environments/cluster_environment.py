"""What a cluster says about its processes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fulmen.ranks import log

__all__ = ["ClusterEnvironment", "ExternalEnvironment"]


class ClusterEnvironment(ABC):
    """Where ranks, sizes and addresses come from. Subclass it for a cluster that fulmen does not know."""

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


class ExternalEnvironment(ClusterEnvironment):
    """A cluster that knows all sizes and ranks, so that there is nothing to set, and mostly starts all processes."""

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the cluster starts all processes: yes."""
        return True

    def set_world_size(self, size: int) -> None:
        """Ignored: the cluster knows its size."""
        log.debug("%s.set_world_size(%d) is ignored: the cluster knows its size.", type(self).__name__, size)

    def set_global_rank(self, rank: int) -> None:
        """Ignored: the cluster knows the rank."""
        log.debug("%s.set_global_rank(%d) is ignored: the cluster knows the rank.", type(self).__name__, rank)
