"""CUDA devices, under the names users import."""

from __future__ import annotations

from fulmen.fabric.accelerators.cuda import CUDAAccelerator, find_usable_cuda_devices, get_nvidia_gpu_stats

__all__ = ["CUDAAccelerator", "find_usable_cuda_devices", "get_nvidia_gpu_stats"]
