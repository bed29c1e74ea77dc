"""Processes started by jsrun in a job of LSF."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fulmen.fabric.environments.cluster_environment import ExternalEnvironment
from fulmen.fabric.environments.variables import number_in, text_in
from fulmen.fabric.errors import ClusterError

__all__ = ["LSFEnvironment"]

_MARKS = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")


class LSFEnvironment(ExternalEnvironment):
    """The environment of `jsrun`: reads JSM_NAMESPACE_SIZE, JSM_NAMESPACE_RANK, JSM_NAMESPACE_LOCAL_RANK.

    Hosts come from the file that LSB_DJOB_RANKFILE names: the launching host, then one line for each process. The
    first of the others becomes MASTER_ADDR. MASTER_PORT is set, unless it was, to 10000 + LSB_JOBID % 1000.

    Raises:
        ClusterError: A variable is missing or no number, or the file does not name this host.
        OSError: The file cannot be read.
    """

    def __init__(self) -> None:
        hosts = _read_hosts()
        self._main_address = hosts[0]
        self._node_rank = _position_of_this_host(hosts)
        self._main_port = (
            number_in("MASTER_PORT", "jsrun")
            if "MASTER_PORT" in os.environ
            else 10000 + number_in("LSB_JOBID", "bsub") % 1000
        )
        os.environ["MASTER_ADDR"] = self._main_address
        os.environ["MASTER_PORT"] = str(self._main_port)

    @property
    def main_address(self) -> str:
        """The first host of the rank file after the launching one."""
        return self._main_address

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else 10000 + the last three digits of the job's number."""
        return self._main_port

    @staticmethod
    def detect() -> bool:
        """Whether jsrun started this process in a job of LSF."""
        return all(variable in os.environ for variable in _MARKS)

    def world_size(self) -> int:
        """JSM_NAMESPACE_SIZE."""
        return number_in("JSM_NAMESPACE_SIZE", "jsrun")

    def global_rank(self) -> int:
        """JSM_NAMESPACE_RANK."""
        return number_in("JSM_NAMESPACE_RANK", "jsrun")

    def local_rank(self) -> int:
        """JSM_NAMESPACE_LOCAL_RANK."""
        return number_in("JSM_NAMESPACE_LOCAL_RANK", "jsrun")

    def node_rank(self) -> int:
        """The position of this host among those of the rank file, in order of first appearance."""
        return self._node_rank


def _read_hosts() -> list[str]:
    """The hosts of the job, one for each process."""
    path = text_in("LSB_DJOB_RANKFILE", "bsub")
    hosts = Path(path).read_text(encoding="utf-8").split()[1:]  # the first line is the launching host
    if not hosts:
        raise ClusterError(
            f"The rank file {path} (LSB_DJOB_RANKFILE) names no host after its first line. Start the script with jsrun "
            "in a job of bsub.",
            subject=path,
        )
    return hosts


def _position_of_this_host(hosts: list[str]) -> int:
    nodes, here = list(dict.fromkeys(hosts)), socket.gethostname()
    if here not in nodes:
        raise ClusterError(
            f"This host is {here!r}, and the rank file {os.environ['LSB_DJOB_RANKFILE']} (LSB_DJOB_RANKFILE) names "
            f"only {', '.join(nodes)}. Start the script with jsrun, which runs it on these.",
            subject=here,
        )
    return nodes.index(here)
