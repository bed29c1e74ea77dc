"""What a kind of device is, and how a setting names some of its devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from fulmen.fabric.errors import PlanError
from fulmen.fabric.registry import Registry

__all__ = ["Accelerator", "check_kind", "parse_device_ids"]


class Accelerator(ABC):
    """A kind of device.

    A new kind is a subclass registered under a name: `AcceleratorRegistry.register("npu", NPUAccelerator)`.
    """

    @abstractmethod
    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one of this process.

        Raises:
            PlanError: The device is of another kind.
        """

    def setup(self, trainer: Any) -> None:  # noqa: B027 - optional to override
        """Called by a Trainer before the model is moved to its device."""

    @abstractmethod
    def teardown(self) -> None:
        """Give back what was taken."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Numbers about the device, such as the memory in use.

        Raises:
            NotImplementedError: This kind of device has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no device stats: override `get_device_stats`.")

    @staticmethod
    @abstractmethod
    def parse_devices(devices: Any) -> Any:
        """Turn the argument `devices` into a number or a list of indices."""

    @staticmethod
    @abstractmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The devices for what `parse_devices` gave."""

    @staticmethod
    @abstractmethod
    def auto_device_count() -> int:
        """How many devices `devices="auto"` stands for."""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether this machine has such a device."""

    @staticmethod
    @abstractmethod
    def name() -> str:
        """The name users type."""

    @classmethod
    def register_accelerators(cls, accelerator_registry: Registry[Accelerator]) -> None:
        """Put this class into a registry, under its name."""
        accelerator_registry.register(cls.name(), cls, description=cls.__name__)


def check_kind(device: torch.device, kind: str) -> None:
    """Raise unless a device is of a kind.

    Raises:
        PlanError: It is of another one.
    """
    if device.type != kind:
        raise PlanError(f"The device has to be of type {kind!r}, got {device} instead.", subject=device)


def parse_device_ids(devices: Any, visible: int, kind: str) -> list[int]:
    """Turn a setting into indices of devices.

    Args:
        devices: `2` or "2": the first two; `-1` or "-1": all; `[0, 2]`, "0, 2" or "2,": those.
        visible: How many devices there are.
        kind: Their name, for messages.

    Raises:
        TypeError: `devices` is None or no int, string or list of ints.
        PlanError: It names none, one twice, or one that is not there.
    """
    wanted = _ids_of_text(devices) if isinstance(devices, str) else devices
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        ids = list(range(visible if wanted == -1 else wanted))
    elif isinstance(wanted, (list, tuple)) and all(type(index) is int for index in wanted):
        ids = list(wanted)
    else:
        raise TypeError(f"`devices` has to be an int, a string or a list of ints, got {devices!r}. Type: devices=1")
    if len(set(ids)) != len(ids):
        raise PlanError(f"devices={devices!r} names a device twice. Name each once.", subject=devices)
    if missing := [index for index in ids if not 0 <= index < visible]:
        there = f"{kind}:0 to {kind}:{visible - 1}" if visible else "none"
        raise PlanError(f"devices={devices!r} asks for {kind}:{missing[0]}; visible here: {there}.", subject=devices)
    if not ids:
        raise PlanError(f"devices={devices!r} leaves no {kind} device to run on. Type: devices=1", subject=devices)
    return ids


def _ids_of_text(text: str) -> int | list[int]:
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise PlanError(
            f"devices={text!r} is not a number nor a list of numbers. Type, for instance: devices='2' or devices='0,2'",
            subject=text,
        ) from None
