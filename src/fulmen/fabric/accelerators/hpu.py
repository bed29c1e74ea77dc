"""Intel Gaudi (HPU): known by name, and not among the devices that fulmen runs on."""

from __future__ import annotations

from typing import Any, NoReturn

from fulmen.fabric.accelerators.accelerator import Accelerator

__all__ = ["HPUAccelerator"]


class HPUAccelerator(Accelerator):
    """Stands for Intel Gaudi devices, for which there is no accelerator here; making one says what to do.

    Raises:
        NotImplementedError: Always.
    """

    def __new__(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuses."""
        raise NotImplementedError(
            "fulmen has no accelerator for HPUs (Intel Gaudi). To use them, install the Gaudi software with its bridge"
            " to PyTorch (`habana_frameworks.torch`), derive a class from `fulmen.accelerators.Accelerator`, and"
            ' register it: `AcceleratorRegistry.register("hpu", MyHPUAccelerator)`.'
        )
