"""Strategies: how a module is spread over devices. Those of several processes are imported when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.fabric.strategies.base import Strategy, overrides, plain
from fulmen.fabric.strategies.registry import StrategyRegistry
from fulmen.fabric.strategies.single import SingleDeviceStrategy
from fulmen.lazy import importing

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

_MODULE_OF = {
    "DDPStrategy": "fulmen.fabric.strategies.ddp",
    "DataParallelStrategy": "fulmen.fabric.strategies.dp",
    "DeepSpeedStrategy": "fulmen.integrations.deepspeed",
    "FSDPStrategy": "fulmen.fabric.strategies.fsdp",
    "ModelParallelStrategy": "fulmen.fabric.strategies.mesh",
    "ParallelStrategy": "fulmen.fabric.strategies.parallel",
    "SingleDeviceXLAStrategy": "fulmen.integrations.xla",
    "XLAFSDPStrategy": "fulmen.integrations.xla",
    "XLAStrategy": "fulmen.integrations.xla",
}


__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return __all__
