"""`ClusterEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.cluster_environment import ClusterEnvironment

__all__ = ["ClusterEnvironment"]
