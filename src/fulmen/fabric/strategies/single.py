"""The strategy of one device: every module is what it is, every collective gives back what it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies.base import Strategy

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator

__all__ = ["SingleDeviceStrategy"]


class SingleDeviceStrategy(Strategy):
    """One process on one device.

    Args:
        device: The device.
        accelerator: Kind of the device; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: In which precision the module computes; None for 32 bit.
        precision: The same, under the name it has for `Fabric`.
    """

    strategy_name: ClassVar[str] = "single_device"

    def __init__(
        self,
        device: torch.device | str | int = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, checkpoint_io, precision_plugin, precision)
        # an index means a CUDA device, also on a machine that has none
        self._root_device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)

    @property
    def root_device(self) -> torch.device:
        """The device."""
        return self._root_device

    @property
    def is_global_zero(self) -> bool:
        """Always."""
        return True

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The tensor itself."""
        return tensor

    def barrier(self, name: str | None = None) -> None:
        """Nobody to wait for."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object itself."""
        return obj

    def all_gather(self, tensor: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensor itself."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """The decision itself."""
        return decision
