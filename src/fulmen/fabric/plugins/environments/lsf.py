"""`LSFEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.lsf import LSFEnvironment

__all__ = ["LSFEnvironment"]
