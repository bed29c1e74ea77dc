"""Groups of processes and what they do together, as objects; the functions strategies use are in `distributed.py`."""

from __future__ import annotations

from fulmen.fabric.collectives.collective import Collective
from fulmen.fabric.collectives.single_device import SingleDeviceCollective
from fulmen.fabric.collectives.torch_collective import TorchCollective

__all__ = ["Collective", "SingleDeviceCollective", "TorchCollective"]
