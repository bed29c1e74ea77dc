"""`SingleDeviceCollective`, under the path users import."""

from __future__ import annotations

from fulmen.fabric.collectives.single_device import SingleDeviceCollective

__all__ = ["SingleDeviceCollective"]
