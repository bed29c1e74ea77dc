"""TPUs, through torch_xla."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fulmen.extras import available, need
from fulmen.fabric.accelerators.accelerator import Accelerator, check_kind, parse_device_ids

__all__ = ["TPUAccelerator", "XLAAccelerator"]


class XLAAccelerator(Accelerator):
    """TPUs, through torch_xla.

    Raises:
        ModuleNotFoundError: torch_xla is not installed.
    """

    def __init__(self) -> None:
        need("torch_xla")

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is an XLA device."""
        check_kind(device, "xla")

    def teardown(self) -> None:
        """Nothing was taken."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Memory as torch_xla reports it: "avg. free memory (MB)", "avg. peak memory (MB)"."""
        info = need("torch_xla.core.xla_model").get_memory_info(torch.device(device))
        total, used = info["bytes_limit"], info["bytes_used"]
        return {"avg. free memory (MB)": (total - used) / 2**20, "avg. peak memory (MB)": used / 2**20}

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """The indices, of at most eight cores."""
        return parse_device_ids(devices, 8, "tpu")

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """The devices of these indices."""
        return [torch.device("xla", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """The cores of this host."""
        count = need("torch_xla.runtime").addressable_device_count()
        return int(count)

    @staticmethod
    def is_available() -> bool:
        """Whether torch_xla is installed and finds a TPU."""
        return available("torch_xla") and need("torch_xla.runtime").device_type() == "TPU"

    @staticmethod
    def name() -> str:
        """The name "tpu"."""
        return "tpu"


TPUAccelerator = XLAAccelerator
"""Its name in versions that knew no other use of XLA."""
