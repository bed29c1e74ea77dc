"""Data parallel in one process: each forward copies the module to all GPUs (torch's DataParallel). `ddp` is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.tree import map_tensors

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.precision import Precision

__all__ = ["DataParallelStrategy"]


class DataParallelStrategy(ParallelStrategy):
    """One process for all GPUs of a machine: each forward divides its batch among copies of the module. For `Fabric`.

    The outputs of all copies come back in one tensor, on the first device; a loss has an element for each of them.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        parallel_devices: The devices; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision: In which precision the module computes; None for 32 bit.
    """

    strategy_name: ClassVar[str] = "dp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, parallel_devices, checkpoint_io=checkpoint_io, precision=precision)

    # One process

    @property
    def global_rank(self) -> int:  # type: ignore[override]
        """There is one process."""
        return 0

    @property
    def local_rank(self) -> int:  # type: ignore[override]
        """There is one process."""
        return 0

    @property
    def node_rank(self) -> int:  # type: ignore[override]
        """There is one machine."""
        return 0

    @property
    def world_size(self) -> int:  # type: ignore[override]
        """There is one process."""
        return 1

    @property
    def launcher(self) -> None:
        """Nothing has to be started."""

    @property
    def distributed_sampler_kwargs(self) -> None:
        """The batches are divided, and not the data."""

    def set_world_ranks(self) -> None:
        """There is one process."""

    def setup_environment(self) -> None:
        """Make the first device the current one."""
        Strategy.setup_environment(self)

    def all_reduce(self, collection: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean over what the copies gave, of each tensor in a nesting; what else is in it stays.

        Args:
            collection: Any nesting of tensors.
            group: Not used: all copies are in one process.
            reduce_op: Not used: it is always the mean.
        """
        return map_tensors(_mean, collection)

    # Modules

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Bring a module to the first device, and wrap it."""
        module = super(ParallelStrategy, self).setup_module(module, move_to_device)
        return nn.DataParallel(module, device_ids=self.parallel_devices)


def _mean(tensor: Tensor) -> Tensor:
    return tensor.float().mean().to(tensor.dtype)
