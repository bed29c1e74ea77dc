"""`LightningEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.lightning import LightningEnvironment, find_free_network_port

__all__ = ["LightningEnvironment", "find_free_network_port"]
