"""Which environment this process was started in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import import_module

from fulmen.extras import available
from fulmen.fabric.environments.cluster_environment import ClusterEnvironment
from fulmen.fabric.environments.lightning import LightningEnvironment

__all__ = ["find_environment"]


def _is_set(variable: str) -> Callable[[], bool]:
    return lambda: variable in os.environ


# Where it lives, and whether it is worth a closer look (its `detect`), which takes an import. torchrun within a job of
# SLURM is torchrun's; MPI comes last, as finding it out starts it up.
_DETECTABLE: tuple[tuple[str, str, Callable[[], bool]], ...] = (
    ("torchelastic", "TorchElasticEnvironment", _is_set("TORCHELASTIC_RUN_ID")),
    ("slurm", "SLURMEnvironment", lambda: "SLURM_NTASKS" in os.environ or shutil.which("srun") is not None),
    ("lsf", "LSFEnvironment", _is_set("LSB_JOBID")),
    ("mpi", "MPIEnvironment", lambda: available("mpi4py")),
)


def find_environment() -> ClusterEnvironment:
    """The first of torchrun, SLURM, LSF and MPI that started this process, else `LightningEnvironment`.

    Raises:
        ClusterError: What was found lacks a variable, or holds settings that cannot work.
    """
    for module, name, may_be in _DETECTABLE:
        if may_be():
            kind: type[ClusterEnvironment] = getattr(import_module(f"fulmen.fabric.environments.{module}"), name)
            if kind.detect():
                return kind()
    return LightningEnvironment()
