"""Strategies: how a module is spread over devices. Those of several processes are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulmen.fabric.strategies.base import Strategy, overrides, plain
from fulmen.fabric.strategies.registry import StrategyRegistry
from fulmen.fabric.strategies.single import SingleDeviceStrategy

if TYPE_CHECKING:
    from fulmen.fabric.strategies.ddp import DDPStrategy
    from fulmen.fabric.strategies.dp import DataParallelStrategy
    from fulmen.fabric.strategies.fsdp import FSDPStrategy
    from fulmen.fabric.strategies.mesh import ModelParallelStrategy
    from fulmen.fabric.strategies.parallel import ParallelStrategy
    from fulmen.integrations.deepspeed import DeepSpeedStrategy
    from fulmen.integrations.xla import SingleDeviceXLAStrategy, XLAFSDPStrategy, XLAStrategy

__all__ = [
    "STRATEGY_REGISTRY",
    "DDPStrategy",
    "DataParallelStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "Strategy",
    "StrategyRegistry",
    "XLAFSDPStrategy",
    "XLAStrategy",
    "overrides",
    "plain",
]

STRATEGY_REGISTRY = StrategyRegistry

_HOMES = {
    "DDPStrategy": "fabric.strategies.ddp",
    "DataParallelStrategy": "fabric.strategies.dp",
    "DeepSpeedStrategy": "integrations.deepspeed",
    "FSDPStrategy": "fabric.strategies.fsdp",
    "ModelParallelStrategy": "fabric.strategies.mesh",
    "ParallelStrategy": "fabric.strategies.parallel",
    "SingleDeviceXLAStrategy": "integrations.xla",
    "XLAFSDPStrategy": "integrations.xla",
    "XLAStrategy": "integrations.xla",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fulmen.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
