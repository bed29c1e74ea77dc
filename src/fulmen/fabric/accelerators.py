"""The kinds of devices: how many there are, which of them a setting means, and what they can tell about themselves."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from fulmen.extras import available, need
from fulmen.fabric.errors import PlanError
from fulmen.fabric.registry import Registry
from fulmen.ranks import rank_zero_info

__all__ = [
    "Accelerator",
    "AcceleratorRegistry",
    "CPUAccelerator",
    "CUDAAccelerator",
    "MPSAccelerator",
    "XLAAccelerator",
    "find_usable_cuda_devices",
    "get_cpu_stats",
    "parse_device_ids",
]


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


def _check_kind(device: torch.device, kind: str) -> None:
    if device.type != kind:
        raise PlanError(f"The device has to be of type {kind!r}, got {device} instead.", subject=device)


class CPUAccelerator(Accelerator):
    """The processor."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is a CPU."""
        _check_kind(device, "cpu")

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
            PlanError: Zero.
        """
        number = int(devices) if isinstance(devices, str) and devices.isdigit() else devices
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


class CUDAAccelerator(Accelerator):
    """NVIDIA GPUs, and AMD GPUs under ROCm."""

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current CUDA device."""
        _check_kind(device, "cuda")
        # the order in which nvidia-smi numbers them; read by the driver when CUDA is initialised
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        torch.cuda.set_device(device)
        if torch.get_float32_matmul_precision() == "highest" and torch.cuda.get_device_capability(device) >= (8, 0):
            rank_zero_info(
                f"{torch.cuda.get_device_name(device)} has Tensor Cores, which float32 matrix products do not use as "
                "they are set. To trade precision for speed: torch.set_float32_matmul_precision('high')"
            )

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
        return torch.cuda.device_count()

    @staticmethod
    def is_available() -> bool:
        """Whether a CUDA device is visible."""
        return torch.cuda.device_count() > 0

    @staticmethod
    def name() -> str:
        """The name "cuda"."""
        return "cuda"


class MPSAccelerator(Accelerator):
    """The GPU of Apple silicon. `DISABLE_MPS=1` in the environment hides it."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is an MPS device."""
        _check_kind(device, "mps")

    def teardown(self) -> None:
        """Give the cached memory back to the device."""
        torch.mps.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Bytes in use: "mps_current_allocated_memory", "mps_driver_allocated_memory"."""
        return {
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


class XLAAccelerator(Accelerator):
    """TPUs, through torch_xla.

    Raises:
        ModuleNotFoundError: torch_xla is not installed.
    """

    def __init__(self) -> None:
        need("torch_xla")

    def setup_device(self, device: torch.device) -> None:
        """Nothing but the check that it is an XLA device."""
        _check_kind(device, "xla")

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


class _AcceleratorRegistry(Registry[Accelerator]):
    """Accelerators under names."""

    def available_accelerators(self) -> list[str]:
        """All names, in alphabetical order."""
        return self.names()


AcceleratorRegistry = _AcceleratorRegistry("accelerator")
for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator):
    _accelerator.register_accelerators(AcceleratorRegistry)
