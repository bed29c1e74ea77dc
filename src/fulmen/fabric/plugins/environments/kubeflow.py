"""`KubeflowEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.kubeflow import KubeflowEnvironment

__all__ = ["KubeflowEnvironment"]
