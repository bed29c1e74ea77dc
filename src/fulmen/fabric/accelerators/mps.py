"""The GPU of Apple silicon."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

from fulmen.extras import available, need
from fulmen.fabric.accelerators.accelerator import Accelerator, check_kind, parse_device_ids

__all__ = ["MPSAccelerator", "get_device_stats"]


class MPSAccelerator(Accelerator):
    """The GPU of Apple silicon. `DISABLE_MPS=1` in the environment hides it."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is an MPS device."""
        check_kind(device, "mps")

    def teardown(self) -> None:
        """Give the cached memory back to the device."""
        torch.mps.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Bytes in use: "mps_current_allocated_memory", "mps_driver_allocated_memory"; and `get_device_stats`.

        The latter needs psutil; without it, they are left out.
        """
        return {
            **(get_device_stats() if available("psutil") else {}),
            "mps_current_allocated_memory": torch.mps.current_allocated_memory(),
            "mps_driver_allocated_memory": torch.mps.driver_allocated_memory(),
        }

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """The indices: [0] is all there can be."""
        return parse_device_ids(devices, 1, "mps")

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """The devices of these indices."""
        return [torch.device("mps", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Whether this is Apple silicon with a torch built for it."""
        hidden = os.environ.get("DISABLE_MPS", "0") == "1"
        return not hidden and platform.machine() == "arm64" and torch.backends.mps.is_available()

    @staticmethod
    def name() -> str:
        """The name "mps"."""
        return "mps"


def get_device_stats() -> dict[str, float]:
    """How much of the memory, time and swap space of the machine, which CPU and GPU share, is in use, in percent.

    Raises:
        ModuleNotFoundError: psutil is not installed.
    """
    psutil = need("psutil")
    return {
        "M1_vm_percent": psutil.virtual_memory().percent,
        "M1_percent": psutil.cpu_percent(),
        "M1_swap_percent": psutil.swap_memory().percent,
    }
