"""The accelerators, under the names users import."""

from __future__ import annotations

from fulmen.fabric.accelerators import (
    Accelerator,
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    HPUAccelerator,
    MPSAccelerator,
    TPUAccelerator,
    XLAAccelerator,
    find_usable_cuda_devices,
    get_cpu_stats,
)

__all__ = [
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
]
