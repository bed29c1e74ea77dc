"""`TorchElasticEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.torchelastic import TorchElasticEnvironment

__all__ = ["TorchElasticEnvironment"]
