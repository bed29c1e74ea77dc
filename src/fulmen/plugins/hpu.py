"""What runs on Intel Gaudi (HPU) has no place here; the names say so when they are used."""

from __future__ import annotations

from typing import Any

__all__ = ["HPUCheckpointIO", "HPUPrecisionPlugin"]


class _OnHPU:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError(
            f"`{type(self).__name__}` was removed: HPU devices are not supported. Leave it out of `plugins`, and type "
            "for instance: accelerator='gpu'"
        )


class HPUCheckpointIO(_OnHPU):
    """Removed.

    Raises:
        NotImplementedError: Always.
    """


class HPUPrecisionPlugin(_OnHPU):
    """Removed.

    Raises:
        NotImplementedError: Always.
    """
