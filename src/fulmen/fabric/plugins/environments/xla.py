"""`XLAEnvironment`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.environments.xla import XLAEnvironment

__all__ = ["XLAEnvironment"]
