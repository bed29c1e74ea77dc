"""`SLURMEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.slurm import SLURMEnvironment

__all__ = ["SLURMEnvironment"]
