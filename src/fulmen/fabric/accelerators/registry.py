"""Accelerators under the names users type."""

from __future__ import annotations

import inspect
from importlib import import_module

from fulmen.fabric.accelerators.accelerator import Accelerator
from fulmen.fabric.accelerators.cpu import CPUAccelerator
from fulmen.fabric.accelerators.cuda import CUDAAccelerator
from fulmen.fabric.accelerators.mps import MPSAccelerator
from fulmen.fabric.accelerators.xla import XLAAccelerator
from fulmen.fabric.registry import Registry

__all__ = ["ACCELERATOR_REGISTRY", "AcceleratorRegistry", "call_register_accelerators"]


class _AcceleratorRegistry(Registry[Accelerator]):
    """Accelerators under names."""

    def available_accelerators(self) -> list[str]:
        """All names, in alphabetical order."""
        return self.names()


AcceleratorRegistry = _AcceleratorRegistry("accelerator")
ACCELERATOR_REGISTRY = AcceleratorRegistry

for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator):
    _accelerator.register_accelerators(AcceleratorRegistry)


def call_register_accelerators(registry: Registry[Accelerator], base_module: str) -> None:
    """Have the accelerators that a module or package defines register themselves.

    Args:
        registry: Where they go.
        base_module: The name of the module, "my_package.accelerators". It shows the classes that are meant; those it
            only imports from elsewhere are left alone.

    Raises:
        ModuleNotFoundError: There is no such module.
        ValueError: A name is taken.
    """
    for _, cls in inspect.getmembers(import_module(base_module), inspect.isclass):
        if issubclass(cls, Accelerator) and not inspect.isabstract(cls) and _within(cls.__module__, base_module):
            cls.register_accelerators(registry)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
