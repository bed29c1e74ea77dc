"""Checkpoints of older versions, in the present layout."""

from __future__ import annotations

from fulmen.utilities.migration.utils import migrate_checkpoint, pl_legacy_patch

__all__ = ["migrate_checkpoint", "pl_legacy_patch"]
