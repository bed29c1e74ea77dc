"""The strategies of TPUs, under the names users know: what to install, and that they are not part of this version."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch

from fulmen.extras import need
from fulmen.fabric.errors import UnavailableError
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.fabric.strategies.single import SingleDeviceStrategy

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
        debug: Whether torch_xla reports what it compiles.
        **kwargs: As `SingleDeviceStrategy`.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "single_xla"

    def __init__(self, device: torch.device | str | int = "xla", debug: bool = False, **kwargs: Any) -> None:
        _refuse(type(self).__name__, "auto")


class XLAStrategy(ParallelStrategy):
    """A copy of the model on each core of a TPU: not part of this version.

    Args:
        debug: Whether torch_xla reports what it compiles.
        sync_module_states: Whether all cores begin with the weights of the first.
        **kwargs: As `ParallelStrategy`.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "xla"

    def __init__(self, debug: bool = False, sync_module_states: bool = True, **kwargs: Any) -> None:
        _refuse(type(self).__name__, "ddp")

    def setup_module(self, module: Any, move_to_device: bool = True) -> Any:
        """Never reached: there is no object of this class."""
        raise NotImplementedError


class XLAFSDPStrategy(ParallelStrategy):
    """A part of each parameter on each core of a TPU: not part of this version.

    Args:
        auto_wrap_policy: Which modules are units.
        activation_checkpointing_policy: Which modules compute their activations again.
        state_dict_type: "sharded" or "full".
        sequential_save: Whether the processes save one after the other.
        **kwargs: As `ParallelStrategy`, and those of torch_xla.

    Raises:
        ModuleNotFoundError: torch_xla is not installed; the message says how to install it.
        UnavailableError: It is.
    """

    strategy_name: ClassVar[str] = "xla_fsdp"

    def __init__(
        self,
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
