"""Groups of processes and what they do together, under the names users import."""

from __future__ import annotations

from fulmen.fabric.collectives import Collective, SingleDeviceCollective, TorchCollective

__all__ = ["Collective", "SingleDeviceCollective", "TorchCollective"]
