"""Processes started by srun."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys

from fulmen.errors import PossibleUserWarning
from fulmen.fabric.environments.cluster_environment import ExternalEnvironment
from fulmen.fabric.environments.variables import number_in
from fulmen.fabric.errors import ClusterError
from fulmen.ranks import rank_zero_warn

__all__ = ["SLURMEnvironment"]

_INTERACTIVE_JOBS = ("bash", "interactive")


class SLURMEnvironment(ExternalEnvironment):
    """The environment of `srun`: reads SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID, SLURM_NODELIST, ...

    Args:
        auto_requeue: Whether a run saves itself and is queued again when the signal arrives.
        requeue_signal: The signal by which SLURM says that time is nearly up; None for SIGUSR1.

    Raises:
        ClusterError: SLURM_NTASKS is given without SLURM_NTASKS_PER_NODE.
    """

    def __init__(self, auto_requeue: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        self.auto_requeue = auto_requeue
        # a system without the signal has no SLURM either
        self.requeue_signal = getattr(signal, "SIGUSR1", None) if requeue_signal is None else requeue_signal
        _warn_of_unused_srun()
        _refuse_tasks_without_nodes()

    @property
    def main_address(self) -> str:
        """MASTER_ADDR, else the first host of SLURM_NODELIST, which is put there; without both this machine."""
        if "MASTER_ADDR" not in os.environ:
            nodes = os.environ.get("SLURM_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
            os.environ["MASTER_ADDR"] = self.resolve_root_node_address(nodes)
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """MASTER_PORT, else 15000 + the last four digits of the job's number, else 12910; it is put there."""
        if "MASTER_PORT" not in os.environ:
            job = number_in("SLURM_JOB_ID", "srun") if "SLURM_JOB_ID" in os.environ else None
            os.environ["MASTER_PORT"] = str(12910 if job is None else 15000 + job % 10000)
        return number_in("MASTER_PORT", "srun")

    @staticmethod
    def detect() -> bool:
        """Whether srun started this process, other than for a shell."""
        _warn_of_unused_srun()
        return _is_srun_used()

    @staticmethod
    def job_name() -> str | None:
        """The job's name; None outside of a job."""
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """The job's number; None outside of a job and in interactive ones."""
        number = os.environ.get("SLURM_JOB_ID", "")
        return int(number) if number.isdecimal() and not _is_interactive() else None

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        """The first host of a list as SLURM writes it.

        Args:
            nodes: "a,b" or "a b" (here a), with ranges "host[22,24-26]" (host22), "node[001-004]-ib,cpu1"
                (node001-ib), "rack[1-2]n[3-4]" (rack1n3).
        """
        first = re.match(r"(?:\[[^\]]*\]|[^\s,\[])*", nodes.strip())  # commas in brackets do not end a host
        return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first.group() if first else "")

    def world_size(self) -> int:
        """SLURM_NTASKS."""
        return number_in("SLURM_NTASKS", "srun")

    def global_rank(self) -> int:
        """SLURM_PROCID."""
        return number_in("SLURM_PROCID", "srun")

    def local_rank(self) -> int:
        """SLURM_LOCALID."""
        return number_in("SLURM_LOCALID", "srun")

    def node_rank(self) -> int:
        """SLURM_NODEID."""
        return number_in("SLURM_NODEID", "srun")

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """See that SLURM_NTASKS_PER_NODE and SLURM_NNODES, where they are set, say the same; not in a shell.

        Args:
            num_devices: Number of devices on each node.
            num_nodes: Number of nodes.

        Raises:
            ClusterError: One of them says otherwise.
        """
        if _is_interactive():
            return
        for setting, value, variable, option in (
            ("devices", num_devices, "SLURM_NTASKS_PER_NODE", "--ntasks-per-node"),
            ("num_nodes", num_nodes, "SLURM_NNODES", "--nodes"),
        ):
            if variable in os.environ and (of_slurm := number_in(variable, "srun")) != value:
                raise ClusterError(
                    f"{setting}={value} does not fit {option}={of_slurm} of the SLURM job ({variable}={of_slurm}). "
                    f"Type: {setting}={of_slurm}, or change the job's script to: #SBATCH {option}={value}",
                    subject=variable,
                )


def _is_interactive() -> bool:
    return SLURMEnvironment.job_name() in _INTERACTIVE_JOBS


def _is_srun_used() -> bool:
    return "SLURM_NTASKS" in os.environ and not _is_interactive()


def _warn_of_unused_srun() -> None:
    if not _is_srun_used() and shutil.which("srun") is not None:
        rank_zero_warn(
            "The `srun` command is here and was not used to start this process. If it should run on SLURM, type: "
            f"srun python {' '.join(sys.argv)}",
            category=PossibleUserWarning,
        )


def _refuse_tasks_without_nodes() -> None:
    if "SLURM_NTASKS" not in os.environ or "SLURM_NTASKS_PER_NODE" in os.environ:
        return
    if (tasks := number_in("SLURM_NTASKS", "srun")) > 1:
        raise ClusterError(
            f"The SLURM job was given --ntasks={tasks} (SLURM_NTASKS={tasks}) without saying how many of them run on "
            f"each node. In the job's script, instead of --ntasks, type: #SBATCH --ntasks-per-node={tasks}",
            subject="SLURM_NTASKS",
        )
