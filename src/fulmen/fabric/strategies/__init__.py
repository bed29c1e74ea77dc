"""Strategies: how a module is spread over devices. Those of several processes are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulmen.fabric.strategies.base import Strategy, overrides, plain
from fulmen.fabric.strategies.registry import StrategyRegistry
from fulmen.fabric.strategies.single import SingleDeviceStrategy

if TYPE_CHECKING:
    from fulmen.fabric.strategies.ddp import DDPStrategy
    from fulmen.fabric.strategies.fsdp import FSDPStrategy
    from fulmen.fabric.strategies.parallel import ParallelStrategy

__all__ = [
    "DDPStrategy",
    "FSDPStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "Strategy",
    "StrategyRegistry",
    "overrides",
    "plain",
]

_HOMES = {"DDPStrategy": "ddp", "FSDPStrategy": "fsdp", "ParallelStrategy": "parallel"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
