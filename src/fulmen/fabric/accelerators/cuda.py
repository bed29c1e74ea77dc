"""NVIDIA GPUs, and AMD GPUs under ROCm."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch

from fulmen.fabric.accelerators.accelerator import Accelerator, check_kind, parse_device_ids
from fulmen.ranks import rank_zero_info

__all__ = [
    "CUDAAccelerator",
    "find_usable_cuda_devices",
    "get_nvidia_gpu_stats",
    "is_cuda_available",
    "num_cuda_devices",
]

# what nvidia-smi is asked for -> its unit
_STATS = {
    "utilization.gpu": "%",
    "memory.used": "MB",
    "memory.free": "MB",
    "utilization.memory": "%",
    "fan.speed": "%",
    "temperature.gpu": "°C",
    "temperature.memory": "°C",
}


class CUDAAccelerator(Accelerator):
    """NVIDIA GPUs, and AMD GPUs under ROCm."""

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current CUDA device."""
        check_kind(device, "cuda")
        # before the driver is asked for anything, which fixes the order of the devices
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        torch.cuda.set_device(device)
        if torch.get_float32_matmul_precision() == "highest" and torch.cuda.get_device_capability(device) >= (8, 0):
            rank_zero_info(
                f"{torch.cuda.get_device_name(device)} has Tensor Cores, which float32 matrix products do not use as "
                "they are set. To trade precision for speed: torch.set_float32_matmul_precision('high')"
            )

    def setup(self, trainer: Any) -> None:
        """Says which devices a process sees, and gives cached memory that is left from before back to them."""
        self.set_nvidia_flags(trainer.local_rank)
        torch.cuda.empty_cache()

    @staticmethod
    def set_nvidia_flags(local_rank: int) -> None:
        """Have the devices numbered as nvidia-smi does, and log which of them are visible.

        Args:
            local_rank: The rank of this process on its machine, for the log.
        """
        # read by the driver when CUDA is initialised
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_cuda_devices()))))
        rank_zero_info(f"LOCAL_RANK: {local_rank} - CUDA_VISIBLE_DEVICES: [{visible}]")

    def teardown(self) -> None:
        """Give the cached memory back to the device."""
        torch.cuda.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """`torch.cuda.memory_stats` of the device."""
        return torch.cuda.memory_stats(device)

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """The indices; see `parse_device_ids`."""
        return parse_device_ids(devices, CUDAAccelerator.auto_device_count(), "cuda")

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """The devices of these indices."""
        return [torch.device("cuda", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """All that are visible; does not initialise CUDA."""
        return num_cuda_devices()

    @staticmethod
    def is_available() -> bool:
        """Whether a CUDA device is visible."""
        return is_cuda_available()

    @staticmethod
    def name() -> str:
        """The name "cuda"."""
        return "cuda"


def num_cuda_devices() -> int:
    """How many CUDA devices are visible; does not initialise CUDA, so that processes can still be forked."""
    return torch.cuda.device_count()


def is_cuda_available() -> bool:
    """Whether a CUDA device is visible; does not initialise CUDA."""
    return num_cuda_devices() > 0


def get_nvidia_gpu_stats(device: torch.device | str | int) -> dict[str, float]:
    """What `nvidia-smi` tells about a GPU: its load, memory, fan and temperatures.

    Args:
        device: The device, with its index among the visible ones.

    Returns:
        "utilization.gpu (%)", "memory.used (MB)", "memory.free (MB)", "utilization.memory (%)", "fan.speed (%)",
        "temperature.gpu (°C)", "temperature.memory (°C)"; NaN for what the device does not measure.

    Raises:
        FileNotFoundError: There is no `nvidia-smi`.
        ValueError: The device has no index, or its index is not among the visible ones.
        RuntimeError: `nvidia-smi` failed; the message is its own.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError("nvidia-smi: command not found. It comes with the driver of NVIDIA GPUs.")
    query = f"--query-gpu={','.join(_STATS)}"
    command = [program, query, "--format=csv,nounits,noheader", f"--id={_nvidia_id(device)}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {(answer.stderr or answer.stdout).strip()}")
    values = [_number(value) for value in answer.stdout.strip().split(",")]
    return {f"{name} ({unit})": value for (name, unit), value in zip(_STATS.items(), values, strict=True)}


def _nvidia_id(device: torch.device | str | int) -> str:
    """The number or UUID under which nvidia-smi knows a visible device."""
    index = device if isinstance(device, int) else torch.device(device).index
    if index is None:
        raise ValueError(f"The device {str(device)!r} has no index. Type, for instance: torch.device('cuda', 0)")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    ids = [part.strip() for part in visible.split(",") if part.strip()]
    if index >= len(ids):
        raise ValueError(f"There is no cuda:{index}: CUDA_VISIBLE_DEVICES={visible!r} shows {len(ids)} devices.")
    return ids[index]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Indices of the first CUDA devices on which something can be allocated now.

    Meant for machines whose GPUs are in exclusive mode, where one that another process uses refuses everybody else.

    Args:
        num_devices: How many are wanted; -1 for all that are usable.

    Raises:
        ValueError: More are wanted than visible, or none is visible.
        RuntimeError: Fewer than wanted are free.
    """
    if num_devices == 0:
        return []
    visible = torch.cuda.device_count()
    if visible == 0:
        raise ValueError(f"{num_devices} CUDA devices were asked for and none is visible on this machine.")
    if num_devices > visible:
        raise ValueError(f"{num_devices} CUDA devices were asked for and {visible} are visible on this machine.")
    usable: list[int] = []
    for index in range(visible):
        if len(usable) == num_devices:
            break
        if _can_allocate(torch.device("cuda", index)):
            usable.append(index)
    if len(usable) < num_devices:
        raise RuntimeError(
            f"{num_devices} CUDA devices were asked for; of the {visible} visible ones only {usable} are not occupied."
        )
    return usable


def _can_allocate(device: torch.device) -> bool:
    try:
        torch.empty(1, device=device)
    except RuntimeError:
        return False
    return True
