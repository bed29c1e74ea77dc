"""The hooks, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.datahooks import CheckpointHooks, DataHooks
from fulmen.modulehooks import ModuleHooks as ModelHooks

__all__ = ["CheckpointHooks", "DataHooks", "ModelHooks"]
