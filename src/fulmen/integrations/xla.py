"""The strategies of TPUs, under the names users know: what to install, and that they are not part of this version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from fulmen.extras import need
from fulmen.fabric.errors import UnavailableError
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.single import SingleDeviceStrategy

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.precision import Precision

__all__ = ["SingleDeviceXLAStrategy", "XLAFSDPStrategy", "XLAStrategy"]


def _refuse(name: str, instead: str) -> NoReturn:
    """Raise what is in the way: the package, or that there is nothing here that uses it."""
    need("torch_xla")
    raise UnavailableError(
        f"{name}: training through torch_xla is not part of this version. Type: strategy={instead!r}", subject=name
    )


class SingleDeviceXLAStrategy(SingleDeviceStrategy):
    """One process on one core of a TPU: not part of this version.

    Args:
        device: The core.
        accelerator, checkpoint_io, precision_plugin: As `SingleDeviceStrategy`.
        debug: Whether torch_xla reports what it compiles.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "single_xla"

    def __init__(
        self,
        device: torch.device | str | int,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
    ) -> None:
        _refuse(type(self).__name__, "auto")


class XLAStrategy(ParallelStrategy):
    """A copy of the model on each core of a TPU: not part of this version.

    Args:
        accelerator, parallel_devices, checkpoint_io, precision_plugin: As `ParallelStrategy`.
        debug: Whether torch_xla reports what it compiles.
        sync_module_states: Whether all cores begin with the weights of the first.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "xla"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
        sync_module_states: bool = True,
        **_: Any,
    ) -> None:
        _refuse(type(self).__name__, "ddp")

    def setup_module(self, module: Any, move_to_device: bool = True) -> Any:
        """Never reached: there is no object of this class."""
        raise NotImplementedError


class XLAFSDPStrategy(ParallelStrategy):
    """A part of each parameter on each core of a TPU: not part of this version.

    Args:
        accelerator, parallel_devices, checkpoint_io, precision_plugin: As `ParallelStrategy`.
        auto_wrap_policy: Which modules are units.
        activation_checkpointing_policy: Which modules compute their activations again.
        state_dict_type: "sharded" or "full".
        sequential_save: Whether the processes save one after the other.
        **kwargs: Those of torch_xla.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "xla_fsdp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        auto_wrap_policy: Any = None,
        activation_checkpointing_policy: Any = None,
        state_dict_type: str = "sharded",
        sequential_save: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse(type(self).__name__, "fsdp")

    def setup_module(self, module: Any, move_to_device: bool = True) -> Any:
        """Never reached: there is no object of this class."""
        raise NotImplementedError
