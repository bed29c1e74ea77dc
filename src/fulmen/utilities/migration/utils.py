"""Checkpoints of older versions, in the present layout."""

from __future__ import annotations

from typing import Any

from fulmen.checkpoint.format import LIGHTNING_VERSION
from fulmen.checkpoint.migration import migrate
from fulmen.checkpoint.unpickler import pl_legacy_patch

__all__ = ["migrate_checkpoint", "pl_legacy_patch"]


def migrate_checkpoint(
    checkpoint: dict[str, Any], target_version: str | None = None
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Brings a loaded checkpoint to the layout that this version writes.

    Args:
        checkpoint: The content of a checkpoint; left as it is.
        target_version: The version of Lightning whose layout is meant; there is only the present one.

    Returns:
        The checkpoint, and by version what was done to it: nothing if it has this layout already.

    Raises:
        CheckpointError: It is no checkpoint.
        ValueError: Another version is asked for.
    """
    if target_version not in (None, LIGHTNING_VERSION):
        raise ValueError(
            f"`migrate_checkpoint(target_version={target_version!r})`: checkpoints are brought to the layout of"
            f" {LIGHTNING_VERSION}, not to one in between. Leave it out."
        )
    migrated = migrate(checkpoint)
    return migrated, {} if migrated is checkpoint else {LIGHTNING_VERSION: [migrate.__name__]}
