"""`MPIEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.mpi import MPIEnvironment

__all__ = ["MPIEnvironment"]
