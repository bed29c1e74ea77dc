"""Processes on the devices of torch_xla."""

from __future__ import annotations

from typing import Any

from fulmen.extras import need
from fulmen.fabric.accelerators import XLAAccelerator
from fulmen.fabric.environments.cluster_environment import ExternalEnvironment

__all__ = ["XLAEnvironment"]


class XLAEnvironment(ExternalEnvironment):
    """The environment of torch_xla, which knows all sizes and ranks and lets the processes meet by itself.

    Raises:
        ModuleNotFoundError: The package torch_xla is not installed.
    """

    def __init__(self) -> None:
        self._runtime: Any = need("torch_xla.runtime")

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the cluster starts all processes: no, they are started from here."""
        return False

    @property
    def main_address(self) -> str:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("torch_xla lets its processes meet by itself: there is no main address.")

    @property
    def main_port(self) -> int:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("torch_xla lets its processes meet by itself: there is no main port.")

    @staticmethod
    def detect() -> bool:
        """Whether torch_xla is installed and finds a device."""
        return XLAAccelerator.is_available()

    def world_size(self) -> int:
        """Number of processes."""
        return int(self._runtime.world_size())

    def global_rank(self) -> int:
        """Rank of this process among all."""
        return int(self._runtime.global_ordinal())

    def local_rank(self) -> int:
        """Rank of this process on its node."""
        return int(self._runtime.local_ordinal())

    def node_rank(self) -> int:
        """Rank of this node."""
        return int(self._runtime.host_index())
