"""The kinds of devices: how many there are, which of them a setting means, and what they can tell about themselves."""

from __future__ import annotations

from fulmen.fabric.accelerators.accelerator import Accelerator, parse_device_ids
from fulmen.fabric.accelerators.cpu import CPUAccelerator, get_cpu_stats
from fulmen.fabric.accelerators.cuda import CUDAAccelerator, find_usable_cuda_devices
from fulmen.fabric.accelerators.hpu import HPUAccelerator
from fulmen.fabric.accelerators.mps import MPSAccelerator
from fulmen.fabric.accelerators.registry import ACCELERATOR_REGISTRY, AcceleratorRegistry
from fulmen.fabric.accelerators.xla import TPUAccelerator, XLAAccelerator

__all__ = [
    "ACCELERATOR_REGISTRY",
    "Accelerator",
    "AcceleratorRegistry",
    "CPUAccelerator",
    "CUDAAccelerator",
    "HPUAccelerator",
    "MPSAccelerator",
    "TPUAccelerator",
    "XLAAccelerator",
    "find_usable_cuda_devices",
    "get_cpu_stats",
    "parse_device_ids",
]
