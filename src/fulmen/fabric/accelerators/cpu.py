"""The processor."""

from __future__ import annotations

from typing import Any

import torch

from fulmen.extras import need
from fulmen.fabric.accelerators.accelerator import Accelerator, check_kind
from fulmen.fabric.errors import PlanError

__all__ = ["CPUAccelerator", "get_cpu_stats"]


class CPUAccelerator(Accelerator):
    """The processor."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is a CPU."""
        check_kind(device, "cpu")

    def teardown(self) -> None:
        """Nothing was taken."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Percentages in use; see `get_cpu_stats`."""
        return get_cpu_stats()

    @staticmethod
    def parse_devices(devices: Any) -> int:
        """The number of processes.

        Raises:
            TypeError: Not an int > 0 nor a string of digits.
            PlanError: None at all: 0 or an empty list.
        """
        number = int(devices) if isinstance(devices, str) and devices.isdigit() else devices
        if number == []:
            number = 0
        if not isinstance(number, int) or number < 0:
            raise TypeError(
                f"`devices` has to be an int > 0 with the accelerator 'cpu', got {devices!r}. Type: devices=1"
            )
        if number == 0:
            raise PlanError(f"devices={devices!r} leaves no device to run on. Type: devices=1", subject=devices)
        return number

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        """As many times the CPU."""
        return [torch.device("cpu")] * devices

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def name() -> str:
        """The name "cpu"."""
        return "cpu"


def get_cpu_stats() -> dict[str, float]:
    """How much of the CPU's memory, time and swap space is in use, in percent.

    The time is that since the last call; the number which the first call gives means nothing.

    Raises:
        ModuleNotFoundError: psutil is not installed.
    """
    psutil = need("psutil")
    return {
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_percent": psutil.cpu_percent(),
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
