"""Serving a module: what it takes and gives over the network, and a check of that before it is trained."""

from __future__ import annotations

from fulmen.serve.servable_module import ServableModule
from fulmen.serve.servable_module_validator import ServableModuleValidator

__all__ = ["ServableModule", "ServableModuleValidator"]
